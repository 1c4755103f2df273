"""Single steps killed with SIGKILL at random moments and run again: the same bytes as of a step nobody disturbed.

The parent has torch loaded and forks, so that the kill lands in the step, not in an import.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outlay.settings import TeachSettings
from outlay.standalone.evaluator import MetricAsked
from outlay.standalone.inference import InferenceOptions, Teaching, evaluate, predict, teach
from outlay.standalone.request import Data
from outlay.standalone.runtime import RuntimeOptions
from outlay.standalone.training import distil, finetune
from tests.listeners import Silent
from tests.steps_world import StepsWorld, tree

Step = Callable[[Path], object]

RUNNING = RuntimeOptions(threads=1, save_seconds=0.0)
KIND = "entities"


class Ready:
    """A world, a fine-tuned teacher and its targets."""

    def __init__(self, root: Path) -> None:
        self.world = StepsWorld.make(root)
        self.teacher, self.targets = root / "teacher", root / "targets"
        assert run(lambda out: self.finetune(out), self.teacher) == 0
        assert run(lambda out: self.teach(out), self.targets) == 0

    def finetune(self, out: Path) -> None:
        file = self.world.file(KIND, "train")
        finetune(self.world.recipe(KIND, "t5", out, file=file, runtime=RUNNING, epochs=4), Silent())

    def distil(self, out: Path) -> None:
        recipe = self.world.recipe(KIND, "small", out, runtime=RUNNING, epochs=4, temperature=2.0)
        distil(replace(recipe, role="distil"), self.targets, Silent())

    def teach(self, out: Path) -> None:
        teach(
            self.answering(out, "pool"), Teaching(student=self.world.model("small"), settings=TeachSettings()), Silent()
        )

    def predict(self, out: Path) -> None:
        predict(self.answering(out / "said.jsonl", "pool"), Silent())

    def evaluate(self, out: Path) -> None:
        evaluate(self.answering(out, "train"), MetricAsked(), Silent())

    def answering(self, out: Path, split: str) -> InferenceOptions:
        data = Data(file=self.world.file(KIND, split))
        return InferenceOptions(self.teacher, out, data, precision="fp32", block_rows=3, runtime=RUNNING)


def start(step: Step, out: Path) -> int:
    """Run a step in a child; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        out.parent.mkdir(parents=True, exist_ok=True)
        step(out)
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def run(step: Step, out: Path) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start(step, out), 0)[1])


def kill_until_done(step: Step, out: Path, longest: float, rng: random.Random) -> int:
    """Kill the step after a random time, again and again, until it gets to its end; how often it was killed."""
    n_kills = 0
    while True:
        pid = start(step, out)
        deadline = time.monotonic() + rng.uniform(0.0, longest)
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        if not done:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return n_kills
        assert code == -signal.SIGKILL, "the step failed by itself"
        n_kills += 1
        assert n_kills < 100, "the step makes no way"
        longest *= 1.15


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return Ready(tmp_path_factory.mktemp("ready"))


@pytest.mark.parametrize("at_least", [1, pytest.param(3, marks=pytest.mark.slow)], ids=["one kill", "three kills"])
@pytest.mark.parametrize("name", ["finetune", "teach", "distil", "predict", "evaluate"])
def test_a_killed_step_ends_with_the_bytes_of_an_undisturbed_one(
    ready: Ready, tmp_path: Path, name: str, at_least: int
) -> None:
    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    # Both lie under the same name: it is part of what is written.
    step: Step = getattr(ready, name)
    began = time.monotonic()
    assert run(step, tmp_path / "out") == 0
    seconds = time.monotonic() - began
    expected = tree(tmp_path / "out")
    assert expected
    n_kills = 0
    while n_kills < at_least:
        (tmp_path / "out").rename(tmp_path / f"before-{n_kills}-{rng.random()}")
        n_kills += kill_until_done(step, tmp_path / "out", 0.8 * seconds, rng)
        assert tree(tmp_path / "out") == expected
