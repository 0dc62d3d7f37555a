"""What is loaded is what was published: the files by the manifest's SHA-256, the manifest by a signature.

The rule of this file: a file is read once. What was verified is what a session is made of, so a file that is replaced
in between changes nothing. A signature is Ed25519 (RFC 8032) over the bytes of `manifest.json`, 64 bytes in
`manifest.json.sig`; since the manifest holds name, version and the hashes of the files, it speaks for them all.

`cryptography` is an extra, imported only where keys are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gateway.errors import StartupError
from gateway.runtime.manifest import MANIFEST_FILE, MODEL_FILE, FileRecord, Manifest, parse_manifest, sha256_of
from gateway.runtime.sealed import SealedFile

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_FILE = f"{MANIFEST_FILE}.sig"
PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ModelContent:
    """The files of a model, as they were verified."""

    model: SealedFile
    external: dict[str, SealedFile] | None
    """Files with its larger tensors, by the name that the model has for them. None without a manifest, which would
    have to list them: what the model names is then read from its folder."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A version whose files are what its manifest says, where it has one; they take memory as long as this lives."""

    manifest: Manifest | None
    content: ModelContent
    digest: str
    """As `digest_of` the same files."""


def verify(folder: Path, keys: Path | None = None) -> Verified:
    """Read a version folder; with `keys`, a file as of `read_keys`, its manifest must be signed by one of them.

    Raises `StartupError` naming the file that is missing, differs or is not signed.
    """
    manifest, raw = _signed_manifest(folder, keys)
    if manifest is None:
        model = _seal(folder / MODEL_FILE)
        return Verified(None, ModelContent(model, None), _digest(model.sha256, raw))
    if manifest.model.file != MODEL_FILE:
        raise StartupError(f"{folder / MANIFEST_FILE}: model.file is {manifest.model.file!r}, expected {MODEL_FILE!r}")
    content = ModelContent(
        _seal_verified(folder, manifest.model),
        {record.file: _seal_verified(folder, record) for record in manifest.external or ()},
    )
    if manifest.reference is not None:
        _seal_verified(folder, manifest.reference)
    return Verified(manifest, content, _digest(content.model.sha256, raw))


def digest_of(folder: Path) -> str:
    """Tells a version from another that lies in the same folder later: of its model and its manifest.

    Raises `StartupError` if a file cannot be read.
    """
    path = folder / MANIFEST_FILE
    try:
        return _digest(sha256_of(folder / MODEL_FILE), path.read_bytes() if path.exists() else b"")
    except OSError as error:
        raise StartupError(f"{folder}: {error.strerror}") from error


def read_keys(path: Path) -> list[Ed25519PublicKey]:
    """The Ed25519 public keys (PEM) in a file, one after the other; a version may be signed by any of them.

    Raises `StartupError` if there is none, or something else among them.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise StartupError("model_keys needs `pip install 'model-gateway[signing]'`")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 -- an extra
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    keys = []
    for block in PEM_BLOCK.finditer(_read(path)):
        if b"PRIVATE" in block[1]:
            raise StartupError(f"{path}: holds a private key; it signs, and is of no use to a gateway")
        try:
            key = load_pem_public_key(block[0])
        except ValueError as error:
            raise StartupError(f"{path}: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise StartupError(f"{path}: holds a public key that is no Ed25519 key")
        keys.append(key)
    if not keys:
        raise StartupError(f"{path}: holds no public key (PEM)")
    return keys


def sign(folder: Path, private_key: Path) -> Path:
    """Write `manifest.json.sig` beside a manifest whose files are verified first; its path.

    Raises `StartupError` if there is no manifest, a file differs, the key is no Ed25519 private key (PEM), or the
    folder cannot be written to.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise StartupError("signing needs `pip install 'model-gateway[signing]'`")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 -- an extra
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(_read(private_key), password=None)
    except (ValueError, TypeError) as error:
        raise StartupError(f"{private_key}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StartupError(f"{private_key}: is no Ed25519 key")
    if verify(folder).manifest is None:
        raise StartupError(f"{folder / MANIFEST_FILE}: not there; the manifest is what is signed")
    path = folder / SIGNATURE_FILE
    # A gateway that looks meanwhile finds the whole file or none.
    unfinished = folder / f".{SIGNATURE_FILE}"
    try:
        unfinished.write_bytes(key.sign(_read(folder / MANIFEST_FILE)))
        unfinished.replace(path)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from error
    return path


def _signed_manifest(folder: Path, keys: Path | None) -> tuple[Manifest | None, bytes]:
    """The manifest and its bytes; the signature comes first, so that nothing unsigned is even parsed."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        if keys is not None:
            raise StartupError(f"{path}: not there; with model_keys only a version with a signed manifest is loaded")
        return None, b""
    raw = _read(path)
    if keys is not None:
        _check_signature(folder / SIGNATURE_FILE, raw, keys)
    return parse_manifest(path, raw), raw


def _check_signature(path: Path, manifest: bytes, keys: Path) -> None:
    if not path.is_file():
        raise StartupError(
            f"{path}: not there; with model_keys each version needs one: "
            f"gateway models sign {path.parent} --key private.pem"
        )
    known = read_keys(keys)
    signature = _read(path)
    if not any(_is_signed(key, signature, manifest) for key in known):
        raise StartupError(f"{path}: is not the signature of {MANIFEST_FILE} by any of the {len(known)} keys in {keys}")


def _is_signed(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 -- an extra

    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _seal_verified(folder: Path, record: FileRecord) -> SealedFile:
    content = _seal(_inside(folder, record))
    if content.sha256 != record.sha256:
        raise StartupError(
            f"{folder / record.file}: sha256 is {content.sha256}, the manifest says {record.sha256}; "
            "the file is not the one that was published"
        )
    return content


def _seal(path: Path) -> SealedFile:
    try:
        return SealedFile(path)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from error


def _inside(folder: Path, record: FileRecord) -> Path:
    """The path of a file that the manifest names. Raises `StartupError` if it is not in the folder."""
    name = PurePosixPath(record.file)
    if name.is_absolute() or ".." in name.parts:
        raise StartupError(f"{folder / MANIFEST_FILE}: {record.file!r} is not in the version's folder")
    path = folder / name
    if not path.is_file():
        raise StartupError(f"{path}: named in the manifest, but not there")
    return path


def _digest(model_sha256: str, manifest: bytes) -> str:
    return hashlib.sha256(model_sha256.encode() + manifest).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from error
