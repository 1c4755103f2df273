"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from outlay.train import timing
from tests.checkpoints import make_checkpoint
from tests.llm_server import API_KEY, LlamaServer, NoLlama, llama_server, write_model
from tests.skips import pytest_configure, pytest_runtest_setup, pytest_terminal_summary, skip_without

if TYPE_CHECKING:
    from tests.runs import FamilyWorld, World

__all__ = ["pytest_configure", "pytest_runtest_setup", "pytest_terminal_summary"]

# What `auto` means must not depend on the machine that the tests run on; those of `auto` itself take it away again.
os.environ["OUTLAY_PRECISION"] = "fp32"
# One round of a few timed answers is enough where nobody reads the milliseconds: runs are most of what the tests do.
timing.TIMING_ROUNDS, timing.N_TIMED_ROWS = 1, 4
# Output in a pipe is as wide as it needs to be, unless somebody says how wide it is.
os.environ.pop("COLUMNS", None)


LONGEST = (
    *("test_buying", "test_study_pools", "test_remote", "test_api", "test_study_page", "test_known", "test_cli"),
    *("test_run", "test_local", "test_methods", "test_money_first", "test_cluster", "test_scheduler", "test_init"),
    *("test_kill", "test_handover", "test_processes", "test_loop", "test_full_disk", "test_demo_task", "test_adapters"),
    *("test_rivals", "test_public_tasks", "test_printed_commands", "test_owned", "test_planning", "test_session"),
    *("test_references", "test_steps", "test_steps_families", "test_precision", "test_architecture"),
    *("test_kill_single", "test_calibration", "test_regression", "test_run_families", "test_cli_steps"),
    *("test_method_runs", "test_skips", "test_study", "test_place", "test_names", "test_exchange", "test_llm_labels"),
    *("test_ledger", "test_output", "test_study_sharing", "test_task", "test_demo_environment", "test_cli_studies"),
)
"""Files that take the longest, which begin first: one that begins last is waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, for workers that are handed one file after another."""
    rank = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


# Whoever begins the tests in the background has Ctrl-C ignored in all that they begin; some of it is to be stopped that way.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine, or one that does something else meanwhile, is no failure of what is tested.
settings.register_profile("outlay", deadline=None)
settings.load_profile("outlay")


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A task, its rows and a checkpoint, made once; read only. Files of tests take `World.fresh` of it."""
    from tests.runs import World  # imports the engine, which most tests can do without

    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def shared_families(tmp_path_factory: pytest.TempPathFactory) -> FamilyWorld:
    """Four tasks and a checkpoint of each family, made once; read only."""
    from tests.runs import FamilyWorld

    return FamilyWorld(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A real server of a random language model, started once; it wants a key."""
    try:
        model = write_model(tmp_path_factory.mktemp("llama") / "tiny.gguf")
        with llama_server(model, api_key=API_KEY) as server:
            yield server
    except NoLlama as error:
        skip_without("llama", str(error))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sentences from a small vocabulary, 3 to 19 words long."""
    from tests.toys import sentences  # imports torch, which most tests can do without

    return [text for text, _ in sentences(151, seed=0)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A pretrained-looking BERT of four layers whose vocabulary covers ``texts``; read only."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), texts)
