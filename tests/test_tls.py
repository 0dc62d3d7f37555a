"""The public port with a certificate."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.running import (
    refused_start,
    running,
)

ALONE = "--no-collector"


def test_the_public_port_speaks_tls_when_it_is_given_a_certificate(models: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *request, *names], check=True, capture_output=True)
    options = ("--no-collector", "--tls-cert", str(certificate), "--tls-key", str(key))
    with running(models, tmp_path / "data", *options) as gateway:
        assert gateway.public_url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=gateway.public_url, verify=context, trust_env=False) as client:
            body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
            answers = [client.post("/v2/models/affine/infer", json=body) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert client.get("/v2/health/live").json() == {"live": True}


def test_a_certificate_that_cannot_be_used_stops_the_start(models: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    options = ("--no-collector", "--tls-cert", str(junk), "--tls-key", str(junk))
    assert "tls_cert" in refused_start(models, tmp_path / "data", *options)
    assert "go together" in refused_start(models, tmp_path / "data", "--no-collector", "--tls-cert", str(junk))
