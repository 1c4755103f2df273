"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.checkpoints import make_checkpoint
from tests.skips import pytest_configure, pytest_runtest_setup, pytest_terminal_summary

__all__ = ["pytest_configure", "pytest_runtest_setup", "pytest_terminal_summary"]

# What `auto` means must not depend on the machine that the tests run on; those of `auto` itself take it away again.
os.environ["OUTLAY_PRECISION"] = "fp32"


# A slow machine, or one that does something else meanwhile, is no failure of what is tested.
settings.register_profile("outlay", deadline=None)
settings.load_profile("outlay")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sentences from a small vocabulary, 3 to 19 words long."""
    from tests.toys import sentences  # imports torch, which most tests can do without

    return [text for text, _ in sentences(151, seed=0)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A pretrained-looking BERT of four layers whose vocabulary covers ``texts``; read only."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), texts)
