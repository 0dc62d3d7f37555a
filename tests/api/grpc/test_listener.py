"""The gRPC port of a whole gateway: encrypted, drained, refused with the remedy."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import service_pb2 as pb

from tests.support.requests import turns
from tests.support.rpc import address_of, floats, occupied, raw_input, refused, stub
from tests.support.running import GatewayProcess, refused_start, running
from tests.support.waiting import wait_until

ALONE = "--no-collector"
ROOT = Path(__file__).parents[3]


def test_the_port_is_off_unless_it_is_asked_for(models: Path, tmp_path: Path) -> None:
    with running(models, tmp_path, ALONE) as gateway:
        assert "grpc" not in gateway.stdout


def test_the_example_of_the_docs_works_when_pasted(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "grpc.md").read_text("utf-8"), re.DOTALL)
    with running(ROOT / "models", tmp_path, ALONE, "--grpc-port", "0") as gateway:
        code = example.replace("127.0.0.1:8001", address_of(gateway))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"\[[01]\] [\w-]{48}\n", done.stdout)


def test_it_is_encrypted_with_the_certificate_of_the_public_port(models: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *request, *names], check=True, capture_output=True)
    options = (ALONE, "--grpc-port", "0", "--tls-cert", str(certificate), "--tls-key", str(key))
    with running(models, tmp_path / "data", *options) as gateway:
        address = address_of(gateway)
        with InferenceServerClient(address, ssl=True, root_certificates=str(certificate)) as client:
            assert client.infer("affine", [raw_input(floats(1, 2, 3), "FP32")]).as_numpy("y").shape == (1, 3)
        with grpc.insecure_channel(address) as channel:
            end = refused(lambda: stub(channel).ServerLive(pb.ServerLiveRequest()))
            assert end.code() is grpc.StatusCode.UNAVAILABLE


def test_a_stop_is_seen_first_and_then_answers_what_is_in_flight(models: Path, tmp_path: Path) -> None:
    with (
        running(models, tmp_path, ALONE, "--grpc-port", "0", "--drain-seconds", "1.5") as gateway,
        grpc.insecure_channel(address_of(gateway)) as channel,
    ):
        service = stub(channel)
        assert gateway.predict("busy", turns(5_000)).status_code == 200
        with occupied(service, gateway):
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not service.ServerReady(pb.ServerReadyRequest()).ready)
        assert gateway.wait_until_stopped() == 0
        assert "Traceback" not in gateway.log


def test_a_port_that_is_taken_is_refused_with_what_to_do(models: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused_start(models, tmp_path, ALONE, "--grpc-port", str(port))
    assert f"grpc_port 127.0.0.1:{port}: Address already in use; choose another with --grpc-port" in message


def test_json_logs_name_the_port_too(models: Path, tmp_path: Path) -> None:
    gateway = GatewayProcess(models, tmp_path, ALONE, "--grpc-port", "0", "--log-format", "json")
    try:
        wait_until(lambda: ", grpc on 127.0.0.1:" in gateway.log, 40.0)
        assert gateway.stop() == 0
    finally:
        gateway.kill()
