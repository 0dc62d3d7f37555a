"""Keys made for a test, and folders signed with them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


class KeyPair:
    """An Ed25519 key in two PEM files, as OpenSSL writes them."""

    def __init__(self, folder: Path, name: str = "key") -> None:
        key = Ed25519PrivateKey.generate()
        self.private = folder / f"{name}.pem"
        self.public = folder / f"{name}.pub.pem"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
