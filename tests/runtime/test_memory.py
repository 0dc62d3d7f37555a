"""What versions hold, what a limit refuses, and what a container leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.errors import NotEnoughMemory, StartupError
from gateway.runtime.memory import LOADING_FACTOR, ModelMemory, cgroup_free_bytes
from gateway.runtime.registry import Loader, Registry
from gateway.runtime.repository import scan
from gateway.runtime.scheduler import Scheduler
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.onnx_models import write_version

MIB = 2**20
LARGE = ModelKey("large", "1")
SMALL = ModelKey("small", "1")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_version(tmp_path, "large", "1", onnx_models.large(32 * MIB))
    write_version(tmp_path, "small", "1", onnx_models.affine())
    return tmp_path


def load(models: Path, memory: ModelMemory) -> Registry:
    registry = Registry()
    with ThreadPoolExecutor(1) as executor:
        Loader("cpu", 1, executor, Scheduler(1), 30.0, lambda *_: None, memory=memory).load_all(scan(models), registry)
    return registry


def test_a_version_holds_about_its_size_and_nothing_when_it_is_gone(models: Path) -> None:
    memory = ModelMemory()
    registry = load(models, memory)
    assert 31 * MIB < registry.get(*LARGE).memory_bytes < 48 * MIB
    assert 0 < registry.get(*SMALL).memory_bytes < 16 * MIB
    registry.get(*LARGE).free()
    assert memory.held.keys() == {SMALL}


def test_what_finds_no_room_is_refused_by_name_and_the_rest_serves(models: Path) -> None:
    registry = load(models, ModelMemory(100 * MIB))
    assert registry.names == ["small"]
    assert registry.refused[LARGE] == (
        "the model may need, while it loads, 128.0 MiB, and the loaded ones hold 0.0 MiB of the 100.0 MiB that "
        "model_memory_bytes allows: unload another, or raise the limit"
    )


def test_what_others_hold_is_not_there_for_a_new_one(models: Path) -> None:
    memory = ModelMemory(150 * MIB)
    memory.held[ModelKey("other", "1")] = 40 * MIB
    assert "the loaded ones hold 40.0 MiB" in load(models, memory).refused[LARGE]
    memory.release(ModelKey("other", "1"))
    assert load(models, memory).refused == {}


def test_what_turns_out_larger_than_predicted_is_refused_as_well(models: Path) -> None:
    size = (models / "large" / "1" / "model.onnx").stat().st_size
    memory = ModelMemory(LOADING_FACTOR * size)
    ballast = bytearray()
    with pytest.raises(NotEnoughMemory, match="the model holds"), memory.loading(LARGE, size):
        ballast.extend(b"x" * (LOADING_FACTOR + 1) * size)
    assert memory.held == {}


def test_a_load_that_fails_holds_nothing(models: Path) -> None:
    memory = ModelMemory()
    (models / "large" / "1" / "model.onnx").write_bytes(b"no model")
    assert load(models, memory).refused.keys() == {LARGE}
    assert memory.held.keys() == {SMALL}


def test_nothing_that_fits_stops_the_start(models: Path) -> None:
    with pytest.raises(StartupError, match=r"no model could be loaded: .* 128\.0 MiB"):
        load(models, ModelMemory(1))


class TestContainer:
    """Memory limits of control groups, as the kernel shows them."""

    def cgroup(self, root: Path, lines: str) -> None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(lines)

    def group(self, root: Path, path: str, limit: str, use: int, cache: int) -> None:
        """Cgroup v2."""
        folder = root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{use}\n")
        (folder / "memory.stat").write_text(f"anon {use - cache}\nactive_file {cache - 1}\ninactive_file 1\n")

    def test_the_tightest_limit_around_the_process_counts_without_the_page_cache(self, tmp_path: Path) -> None:
        self.cgroup(tmp_path, "0::/pod/gateway\n")
        self.group(tmp_path, "pod/gateway", "max", 50, 10)
        self.group(tmp_path, "pod", "100", 90, 30)
        assert cgroup_free_bytes(tmp_path) == 40
        self.group(tmp_path, "pod/gateway", "70", 50, 10)
        assert cgroup_free_bytes(tmp_path) == 30
        self.group(tmp_path, "pod/gateway", "40", 60, 10)
        assert cgroup_free_bytes(tmp_path) == 0

    def test_a_container_sees_its_own_group_at_the_mount(self, tmp_path: Path) -> None:
        self.cgroup(tmp_path, "0::/kubepods/pod1/abc\n")
        self.group(tmp_path, "", "100", 60, 10)
        assert cgroup_free_bytes(tmp_path) == 50

    def test_version_1_says_the_same_in_other_words(self, tmp_path: Path) -> None:
        self.cgroup(tmp_path, "4:memory:/docker/abc\n1:cpu:/\n")
        folder = tmp_path / "sys/fs/cgroup/memory"
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text("100\n")
        (folder / "memory.usage_in_bytes").write_text("90\n")
        (folder / "memory.stat").write_text("active_file 1\ntotal_active_file 20\ntotal_inactive_file 5\n")
        assert cgroup_free_bytes(tmp_path) == 35

    def test_no_limit_is_none(self, tmp_path: Path) -> None:
        assert cgroup_free_bytes(tmp_path) is None
        self.cgroup(tmp_path, "0::/\n")
        assert cgroup_free_bytes(tmp_path) is None
        self.group(tmp_path, "", "max", 60, 10)
        assert cgroup_free_bytes(tmp_path) is None

    def test_a_model_is_refused_before_the_kernel_ends_the_process(self, models: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        self.cgroup(root, "0::/\n")
        self.group(root, "", str(200 * MIB), 190 * MIB, 50 * MIB)
        registry = load(models, ModelMemory(root=root))
        assert "128.0 MiB, and the container's memory limit leaves 60.0 MiB" in registry.refused[LARGE]
        assert registry.names == ["small"]
