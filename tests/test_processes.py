"""Several processes against one: the same losses, weights and words, with copies of the model and with shards of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import process_worker
from tests.process_worker import TRAININGS

ROOT = Path(__file__).parent.parent
COPIED = ("classes", "limited", "tokens", "adafactor", "resumed", "words")
SHARDED = ("tokens", "adafactor", "resumed", "words")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def launch(folder: Path, names: tuple[str, ...], n_processes: int = 2, **environment: str) -> dict[str, Any]:
    """Run trainings in ``n_processes`` processes, as `torchrun` would start them."""
    out = folder / "out.json"
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.process_worker", str(out), *names],
            env={**os.environ, **shared, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n_processes)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * n_processes, "\n".join(said)
    done: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return done


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(tmp_path_factory.mktemp("copies"), COPIED)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(tmp_path_factory.mktemp("shards"), SHARDED, ACCELERATE_USE_FSDP="true")


@cache
def alone(name: str, folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = json.loads(json.dumps(TRAININGS[name](folder)))
    return done


def assert_like(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert len(ours["losses"]) == len(theirs["losses"]) > 7
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    for mine, other in zip(ours["history"], theirs["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    for name in ("stopped", "tokens", "n_parameters", "best"):
        assert ours[name] == theirs[name], name
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weights in theirs["weights"].items():
        assert torch.allclose(torch.tensor(ours["weights"][name]), torch.tensor(weights), atol=1e-5), name


@pytest.mark.parametrize("name", ["classes", "limited", "tokens", "adafactor", "resumed"])
def test_two_processes_take_the_steps_of_one(copies: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert_like(copies[name], alone(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokens", "adafactor"])
def test_two_shards_take_the_steps_of_one_process(shards: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert_like(shards[name], alone(name, tmp_path))


@pytest.mark.slow
def test_shards_go_on_from_their_checkpoint(shards: dict[str, Any]) -> None:
    """The same bits as a training that nobody killed, whose losses before the kill are not told again."""
    ours, theirs = shards["resumed"], shards["adafactor"]
    assert ours["weights"] == theirs["weights"]
    assert ours["history"] == theirs["history"]


def test_the_main_process_decides_when_to_stop(copies: dict[str, Any]) -> None:
    assert copies["limited"]["stopped"] == "limit"
    assert 600 < copies["limited"]["tokens"]["trained"] <= 700


TOLD = {
    "gathered": ["0.0", "1.0", "1.1"],
    "agreed": [1, 0],
    "total": [3.0, 11.0],
    "place": [2, False, "cpu"],
}


def test_what_processes_tell_each_other(copies: dict[str, Any], tmp_path: Path) -> None:
    assert copies["words"] == TOLD
    assert alone("words", tmp_path) == {
        "gathered": ["0.0"],
        "agreed": [1, 0],
        "total": [1.5, 1.0],
        "place": [1, False, "cpu"],
    }


@pytest.mark.slow
def test_what_shards_tell_each_other(shards: dict[str, Any]) -> None:
    assert shards["words"] == {**TOLD, "place": [2, True, "cpu"]}


def test_the_last_batch_leaves_a_process_without_rows() -> None:
    assert process_worker.N_ROWS % process_worker.SETTINGS.batch_size == 1


@pytest.mark.slow
def test_sharded_t5_learns_and_writes_as_one_process_does(tmp_path: Path) -> None:
    """Its embeddings are tied and used outside of the root's forward pass: by `generate`, through the encoder."""
    ours = launch(tmp_path, ("t5",), ACCELERATE_USE_FSDP="true")["t5"]
    theirs = alone("t5", tmp_path)
    assert_like(ours, theirs)
    assert ours["written"] == theirs["written"]
    assert len({tuple(row) for row in ours["written"]}) > 1
