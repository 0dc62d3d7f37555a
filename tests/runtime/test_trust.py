"""Only what was published is loaded: by hash, by signature, and by the very bytes that were looked at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gateway.errors import StartupError
from gateway.runtime.manifest import sha256_of
from gateway.runtime.session import OnnxSession
from gateway.runtime.trust import digest_of, read_keys, sign, verify
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.signing import KeyPair

CONTENT = onnx_models.classifier()


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return KeyPair(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_published_version(tmp_path / "models", "m", "1", CONTENT)


def refusal(folder: Path, keys: Path | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        verify(folder, keys)
    return str(caught.value)


class TestHashes:
    def test_a_published_version_verifies(self, folder: Path) -> None:
        verified = verify(folder)
        assert verified.manifest is not None
        assert (verified.manifest.version, verified.content.external) == ("1", {})
        assert verified.content.model.path.read_bytes() == CONTENT
        assert verified.digest == digest_of(folder)

    def test_a_version_without_a_manifest_has_nothing_to_verify(self, tmp_path: Path) -> None:
        folder = write_version(tmp_path, "m", "1", CONTENT)
        verified = verify(folder)
        assert (verified.manifest, verified.content.external) == (None, None)
        assert verified.content.model.path.read_bytes() == CONTENT
        assert verified.digest == digest_of(folder)

    def test_a_model_that_is_not_the_published_one_is_refused_by_name(self, folder: Path) -> None:
        before = digest_of(folder)
        (folder / "model.onnx").write_bytes(CONTENT + b"\n")
        assert "m/1/model.onnx: sha256 is " in refusal(folder)
        assert digest_of(folder) != before

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"reference": {"file": "reference.parquet", "sha256": "0" * 64}}, "m/2/reference.parquet: named in"),
            ({"external": [{"file": "w.bin", "sha256": "0" * 64}]}, "m/2/w.bin: named in the manifest, but not there"),
            (
                {"external": [{"file": "../1/model.onnx", "sha256": "0" * 64}]},
                "'../1/model.onnx' is not in the version's",
            ),
            (
                {"external": [{"file": "/etc/passwd", "sha256": "0" * 64}]},
                "'/etc/passwd' is not in the version's folder",
            ),
            (
                {"model": {"file": "other.onnx", "sha256": "0" * 64}},
                "model.file is 'other.onnx', expected 'model.onnx'",
            ),
        ],
    )
    def test_a_file_that_cannot_be_what_the_manifest_says_is_refused_by_name(
        self, folder: Path, changes: dict[str, object], problem: str
    ) -> None:
        other = write_published_version(folder.parent.parent, "m", "2", CONTENT, **changes)
        assert problem in refusal(other)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read_is_named(self, folder: Path) -> None:
        (folder / "model.onnx").chmod(0)
        assert refusal(folder).endswith("model.onnx: Permission denied")


class TestExternalData:
    """A model whose matrix lies in a file of its own."""

    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        folder = write_version(tmp_path / "models", "large", "1", b"")
        proto = onnx.load_from_string(onnx_models.large(2**16))
        onnx.save_model(
            proto, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        return folder

    def publish(self, large: Path, *external: str) -> None:
        """Write a manifest that lists the model and these files."""
        records = [{"file": name, "sha256": sha256_of(large / name)} for name in ("model.onnx", *external)]
        changes = {"model": records[0], "external": records[1:] or None}
        other = write_published_version(large.parent.parent, "other", "1", b"", **changes)
        document = orjson.loads((other / "manifest.json").read_bytes())
        (large / "manifest.json").write_bytes(orjson.dumps({**document, "name": "large"}))

    def answer(self, large: Path, between: Callable[[], object] = lambda: None) -> float:
        """Of the session made of what was verified, whatever happens in between."""
        content = verify(large).content
        between()
        session = OnnxSession(large / "model.onnx", "cpu", content=content)
        columns = session.signature.inputs[0].shape[1]
        return float(session.run({"x": np.ones((1, columns), np.float32)})[0].sum())

    def test_what_is_run_is_what_was_verified(self, large: Path) -> None:
        unpublished = self.answer(large)
        self.publish(large, "weights.bin")

        def replace_both() -> None:
            (large / "weights.bin").write_bytes(bytes((large / "weights.bin").stat().st_size))
            (large / "model.onnx").write_bytes(CONTENT)

        assert self.answer(large, replace_both) == pytest.approx(unpublished)

    def test_a_changed_weight_is_refused(self, large: Path) -> None:
        self.publish(large, "weights.bin")
        (large / "weights.bin").write_bytes(bytes((large / "weights.bin").stat().st_size))
        assert "large/1/weights.bin: sha256 is" in refusal(large)

    @pytest.mark.parametrize("is_another_listed", [False, True])
    def test_a_file_that_the_manifest_does_not_list_is_not_read(
        self, large: Path, monkeypatch: pytest.MonkeyPatch, is_another_listed: bool
    ) -> None:
        (large / "more.bin").write_bytes(b"more")
        self.publish(large, *(["more.bin"] if is_another_listed else []))
        # ONNX Runtime would look there for a model of which it knows no folder.
        monkeypatch.chdir(large)
        with pytest.raises(StartupError, match=r"large/1/model\.onnx: ONNX Runtime cannot load it: .*weights\.bin"):
            self.answer(large)


class TestSignatures:
    def test_a_signed_version_is_taken(self, folder: Path, key: KeyPair) -> None:
        assert sign(folder, key.private) == folder / "manifest.json.sig"
        assert verify(folder, key.public).manifest is not None
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

    def test_openssl_signs_as_well(self, folder: Path, key: KeyPair) -> None:
        signing = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(key.private)]
        files = ["-in", str(folder / "manifest.json"), "-out", str(folder / "manifest.json.sig")]
        subprocess.run([*signing, *files], check=True, timeout=20)
        assert verify(folder, key.public).manifest is not None

    def test_an_unsigned_version_is_refused_with_the_command_that_signs_it(self, folder: Path, key: KeyPair) -> None:
        assert f"gateway models sign {folder} --key private.pem" in refusal(folder, key.public)

    def test_a_version_without_a_manifest_is_refused(self, tmp_path: Path, key: KeyPair) -> None:
        folder = write_version(tmp_path / "models", "m", "1", CONTENT)
        assert "manifest.json: not there; with model_keys only" in refusal(folder, key.public)
        with pytest.raises(StartupError, match="the manifest is what is signed"):
            sign(folder, key.private)

    @pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\0" * 63, b"\0" * 1000])
    def test_what_is_no_signature_is_refused(self, folder: Path, key: KeyPair, signature: bytes) -> None:
        (folder / "manifest.json.sig").write_bytes(signature)
        assert "is not the signature of manifest.json by any of the 1 keys" in refusal(folder, key.public)

    def test_a_manifest_that_was_changed_since_is_refused_before_it_is_read(self, folder: Path, key: KeyPair) -> None:
        sign(folder, key.private)
        (folder / "manifest.json").write_bytes(b"no manifest at all")
        assert "is not the signature of manifest.json" in refusal(folder, key.public)

    def test_a_signature_is_of_one_version(self, folder: Path, key: KeyPair) -> None:
        sign(folder, key.private)
        other = write_version(folder.parent.parent, "m", "2", CONTENT)
        for name in ("manifest.json", "manifest.json.sig"):
            (other / name).write_bytes((folder / name).read_bytes())
        assert "describes m/1 but lies in m/2" in refusal(other, key.public)

    def test_keys_are_rotated_by_two_in_one_file(self, tmp_path: Path, folder: Path, key: KeyPair) -> None:
        new, keys = KeyPair(tmp_path, "new"), tmp_path / "keys.pem"
        sign(folder, key.private)
        keys.write_bytes(new.public.read_bytes())
        assert "by any of the 1 keys" in refusal(folder, keys)
        keys.write_bytes(key.public.read_bytes() + b"the new one\n" + new.public.read_bytes())
        assert verify(folder, keys).manifest is not None
        sign(folder, new.private)
        assert verify(folder, keys).manifest is not None
        # From here on the old one is worth nothing.
        keys.write_bytes(new.public.read_bytes())
        assert verify(folder, keys).manifest is not None

    def test_a_file_that_differs_is_not_signed(self, folder: Path, key: KeyPair) -> None:
        (folder / "model.onnx").write_bytes(b"")
        with pytest.raises(StartupError, match="sha256 is"):
            sign(folder, key.private)
        assert not (folder / "manifest.json.sig").exists()


class TestKeys:
    def test_only_ed25519_public_keys_are_keys(self, tmp_path: Path, key: KeyPair) -> None:
        rsa = generate_private_key(65537, 2048)
        public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        broken = b"-----BEGIN PUBLIC KEY-----\nbm8=\n-----END PUBLIC KEY-----\n"
        for content, problem in [
            (b"", r"holds no public key \(PEM\)"),
            (key.private.read_bytes(), "holds a private key"),
            (key.public.read_bytes() + public, "no Ed25519 key"),
            (broken, ""),
        ]:
            (tmp_path / "keys.pem").write_bytes(content)
            with pytest.raises(StartupError, match=f"keys.pem: .*{problem}"):
                read_keys(tmp_path / "keys.pem")
        with pytest.raises(StartupError, match=r"absent\.pem: No such file"):
            read_keys(tmp_path / "absent.pem")

    def test_only_an_ed25519_private_key_signs(self, tmp_path: Path, folder: Path, key: KeyPair) -> None:
        rsa = generate_private_key(65537, 2048)
        own = load_pem_private_key(key.private.read_bytes(), None)
        locked = BestAvailableEncryption(b"a secret")
        for content, problem in [
            (b"", "Unable to load"),
            (key.public.read_bytes(), ""),
            (rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "is no Ed25519 key"),
            (own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked), "Password was not given"),
        ]:
            (tmp_path / "other.pem").write_bytes(content)
            with pytest.raises(StartupError, match=f"other.pem: .*{problem}"):
                sign(folder, tmp_path / "other.pem")
