"""Dashboards: what is written to tensorboard, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from outlay.errors import UsageError
from outlay.train.trackers import open_tracker


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_figure_at_its_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", name="toy", folder=tmp_path, settings={"epochs": 3, "patience": None})
    assert tracker is not None
    for step in range(1, 6):
        tracker.log({"loss": 1 / step, "learning_rate": 0.5}, step)
    tracker.log({"dev": 71.5}, 5)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "toy"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("dev")] == [(5, 71.5)]
    losses = events.Scalars("loss")
    assert [each.step for each in losses] == [1, 2, 3, 4, 5]
    assert [each.value for each in losses] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_none_opens_nothing_and_an_unknown_dashboard_is_refused(tmp_path: Path) -> None:
    assert open_tracker("none", name="toy", folder=tmp_path / "never", settings={}) is None
    assert not (tmp_path / "never").exists()
    with pytest.raises(UsageError, match="known: wandb, tensorboard, trackio or none"):
        open_tracker("excel", name="toy", folder=tmp_path, settings={})


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"pip install {name}") as error:
        open_tracker(name, name="toy", folder=tmp_path, settings={})
    assert "\n" not in str(error.value)
