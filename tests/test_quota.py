"""Cores and memory that a container grants, told from made-up trees of ``/proc`` and ``/sys``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from outlay.hardware import quota
from outlay.hardware.openmp import waiting_variables
from outlay.hardware.quota import core_numbers, suite_workers, usable_cores, usable_memory
from outlay.workers.local import usable_cores as core_list

GB = 10**9
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1 = """32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"""


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "core_numbers", lambda: tuple(range(8)))


def v2(root: Path, cpu: Mapping[str, str], *, group: str = "/a/b") -> Path:
    files = {f"sys/fs/cgroup{at}/cpu.max": text for at, text in cpu.items()}
    return tree(root, {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": V2, **files})


@pytest.mark.parametrize(
    ("cpu", "cores"),
    [
        ({"/a/b": "200000 100000"}, 2),
        ({"/a/b": "max 100000", "/a": "300000 100000"}, 3),  # a group above is the narrower one
        ({"/a/b": "400000 100000", "/a": "300000 100000", "": "250000 50000"}, 3),
        ({"/a/b": "max 100000"}, 8),
        ({"/a/b": "50000 100000"}, 1),  # half a core is one
        ({"/a/b": "250000 100000"}, 2),
        ({"/a/b": "9900000 100000"}, 8),  # more than there are
        ({"/a/b": "200000"}, 2),
        ({"/a/b": "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_cores_by_the_quota_of_version_2(tmp_path: Path, cpu: Mapping[str, str], cores: int) -> None:
    assert usable_cores(v2(tmp_path, cpu)) == cores


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    """Its ``/proc/self/cgroup`` may name the host's path, or one above, which is not there."""
    for i, group in enumerate(("/", "/host/docker/0123", "/../../kubepods/pod")):
        assert usable_cores(v2(tmp_path / str(i), {"": "150000 100000"}, group=group)) == 1


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [({"/docker/1": "200000"}, 2), ({"/docker/1": "-1", "/docker": "300000"}, 3), ({"": "-1"}, 8), ({}, 8)],
)
def test_cores_by_the_quota_of_version_1(tmp_path: Path, quotas: Mapping[str, str], cores: int) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/1\n3:cpuset:/\n1:cpu,cpuacct:/docker/1\n0::/",
        "proc/self/mountinfo": V1,
    }
    for at, text in quotas.items():
        files |= {
            f"sys/fs/cgroup/cpu,cpuacct{at}/cpu.cfs_{name}_us": text if name == "quota" else "100000"
            for name in ("quota", "period")
        }
    assert usable_cores(tree(tmp_path, files)) == cores


def test_a_group_that_is_mounted_from_below(tmp_path: Path) -> None:
    """``/docker/1`` of the host is the root of what is mounted: only what lies below it is looked for."""
    mounts = V2.replace("0:28 / ", "0:28 /docker/1 ")
    files = {"proc/self/cgroup": "0::/docker/1/own", "proc/self/mountinfo": mounts}
    assert usable_cores(tree(tmp_path, files | {"sys/fs/cgroup/own/cpu.max": "100000 100000"})) == 1


def test_memory_is_the_least_that_is_said(tmp_path: Path) -> None:
    meminfo = {"proc/meminfo": f"MemTotal: {64 * GB // 1024} kB\nMemFree: 1 kB"}
    assert usable_memory(tree(tmp_path / "plain", meminfo)) == 64 * GB // 1024 * 1024
    root = v2(tmp_path / "v2", {})
    tree(root, {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": str(4 * GB), **meminfo})
    assert usable_memory(root) == 4 * GB
    files = {"proc/self/cgroup": "4:memory:/docker/1", "proc/self/mountinfo": V1, **meminfo}
    limit = "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes"
    assert usable_memory(tree(tmp_path / "v1", files | {limit: str(3 * GB)})) == 3 * GB
    assert usable_memory(tree(tmp_path / "open", files | {limit: "9223372036854771712"})) == 64 * GB // 1024 * 1024
    assert usable_memory(tmp_path / "nothing") is None


@pytest.mark.parametrize(("memory", "workers"), [(16 * GB, 4), (5 * GB, 3), (GB, 1)])
def test_test_workers_fit_into_the_memory(tmp_path: Path, memory: int, workers: int) -> None:
    root = tree(v2(tmp_path, {}), {"sys/fs/cgroup/a/b/memory.max": str(memory)})
    assert suite_workers(root=root) == workers
    assert suite_workers(1, root) == 1
    assert suite_workers(root=v2(tmp_path / "quota", {"/a/b": "200000 100000"})) == 2


def test_systems_that_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "core_numbers", tuple)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_workers_are_dealt_no_more_cores_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    numbers = core_numbers()
    monkeypatch.setattr("outlay.workers.local.n_usable_cores", lambda: 1)
    assert core_list() == numbers[:1]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"GOMP_SPINCOUNT": "1000"}, {}),
        ({"KMP_BLOCKTIME": "0", "PATH": "/bin"}, {}),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_chose(given: dict[str, str], added: dict[str, str]) -> None:
    assert waiting_variables(given) == added
