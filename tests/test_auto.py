"""The method that `auto` stands for: the shipped table is the one that the committed results give."""

from __future__ import annotations

import statistics
import tomllib
from pathlib import Path

import pytest

import outlay.settings.auto
from bench.auto_methods import PAIRS, best_method, judge, read
from outlay.settings import METHOD_NAMES, TrainSettings, flat_settings
from outlay.settings.auto import choose_method
from outlay.study.schema import method_settings

POINTS = Path(__file__).parents[1] / "docs" / "results" / "few_labels" / "points.json"
TABLE = tomllib.loads(Path(outlay.settings.auto.__file__).with_name("auto.toml").read_text(encoding="utf-8"))


def chosen(n_labels: int = 64, **more: object) -> outlay.settings.auto.ChosenMethod:
    asked = {
        "kind": "classification",
        "family": "encoder",
        "is_pretrained": True,
        "is_pair": False,
        "learns_from": "labels",
    }
    return choose_method(n_labels=n_labels, **{**asked, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("is_pair", [False, True])
def test_the_table_is_that_of_the_results(is_pair: bool) -> None:
    scores = read([POINTS])
    means = {cell: {name: statistics.fmean(seeds) for name, seeds in of.items()} for cell, of in scores.items()}
    cells = [cell for cell in means if (cell[0] in PAIRS) == is_pair]
    assert {len({cell[0] for cell in cells}), len({cell[1] for cell in cells})} == ({2, 3} if is_pair else {3})
    found = chosen(is_pair=is_pair)
    assert found.settings == method_settings(best_method(means, cells))
    assert {n for _, n in cells} >= {TABLE["least_labels"], TABLE["most_labels"]}


def test_it_loses_less_than_a_point_on_sets_that_it_was_not_learned_from() -> None:
    losses = judge(read([POINTS]))
    assert len(losses) == 15
    assert statistics.fmean(each.to_best for each in losses) == pytest.approx(0.72, abs=0.005)
    assert statistics.fmean(each.to_rival for each in losses) == pytest.approx(-1.90, abs=0.005)
    # Seeds that were left out would be seen here.
    assert all(len(seeds) == 3 for of in read([POINTS]).values() for seeds in of.values())


def test_outside_of_the_results_it_says_extrapolated() -> None:
    assert "extrapolated: the table goes from 16 to 250 labels" in chosen(251).why
    assert "extrapolated" in chosen(15).why
    assert "extrapolated" not in chosen(16).why + chosen(250).why
    assert chosen(10**6).settings == chosen(250).settings


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kind": "generation", "family": "seq2seq"}, "a seq2seq model writes its answers"),
        ({"family": "causal"}, "a causal model writes its answers"),
        ({"is_pretrained": False, "is_pair": True}, "random weights"),
    ],
)
def test_models_without_vectors_to_speak_of_are_fine_tuned(more: dict[str, object], why: str) -> None:
    found = chosen(**more)
    assert found.method == "full"
    assert why in found.why


def test_every_row_of_the_table_is_a_training() -> None:
    plain = TrainSettings(epochs=1, batch_size=1, learning_rate=1e-4)
    rows = [
        row for kinds in TABLE["methods"].values() for texts in kinds.values() for of in texts.values() for row in of
    ]
    assert len(rows) == 6
    for row in rows:
        settings = {name: value for name, value in row.items() if name != "up_to"}
        assert settings["method"] in METHOD_NAMES
        assert plain.changed(settings).method == flat_settings(settings)["method"]
