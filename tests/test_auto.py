"""The method that `auto` stands for: the shipped table is the one that the committed results give."""

from __future__ import annotations

import statistics
import tomllib
from pathlib import Path

import pytest

import outlay.settings.auto
from bench.auto_methods import RULES, best_method, judge, mean_loss, means_of
from bench.method_tables import kind_of, read
from outlay.settings import METHOD_NAMES, TrainSettings, flat_settings
from outlay.settings.auto import CONDITIONS, choose_method
from outlay.study.schema import method_settings

RULE = RULES["by size of the student"]
"""What the shipped table distinguishes beside the kind of text: the rule that loses least on sets left out."""
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


@pytest.mark.parametrize("size", ["cut", "whole"])
@pytest.mark.parametrize("kind", ["single", "pair", "entities"])
def test_the_table_is_that_of_the_results(kind: str, size: str) -> None:
    means = means_of(read())
    of_kind = [cell for cell in means if kind_of(cell[0]) == kind]
    # Without results of a model of this size, it is taken for one of the other.
    cells = [cell for cell in of_kind if RULE(cell) == RULE(("", 64, size))] or of_kind
    more = {"kind": "entities"} if kind == "entities" else {"is_pair": kind == "pair"}
    found = chosen(is_cut=size == "cut", **more)
    assert found.settings == method_settings(best_method(means, cells))
    numbers = {n for _, n, _ in means}
    assert (min(numbers), max(numbers)) == (TABLE["least_labels"], TABLE["most_labels"])


def test_it_loses_less_than_a_point_on_sets_that_it_was_not_learned_from() -> None:
    scores = read()
    losses = judge(scores, RULE)
    assert mean_loss(losses) <= min(mean_loss(judge(scores, rule)) for rule in RULES.values()) + 0.05
    assert len(losses) == 26
    assert mean_loss(losses) == pytest.approx(0.54, abs=0.005)
    assert statistics.fmean(each.to_rival for each in losses) == pytest.approx(-5.54, abs=0.005)
    # Seeds that were left out would be seen here.
    assert all(len(seeds) == 3 for cell in means_of(scores) for seeds in scores[cell].values())


def test_outside_of_the_results_it_says_extrapolated() -> None:
    assert "extrapolated: the table goes from 16 to 1,000 labels" in chosen(1001).why
    assert "extrapolated" in chosen(15).why
    assert "extrapolated" not in chosen(16).why + chosen(1000).why
    assert chosen(10**6).settings == chosen(1000).settings


def test_a_row_may_be_for_cut_or_for_whole_models() -> None:
    assert chosen(is_cut=True).method == "full"
    assert "method auto: full of a cut model for 64 labels" in chosen(is_cut=True).why
    assert chosen().method == "contrastive"


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
    assert len(rows) == 7
    for row in rows:
        settings = {name: value for name, value in row.items() if name not in CONDITIONS}
        assert settings["method"] in METHOD_NAMES
        assert plain.changed(settings).method == flat_settings(settings)["method"]
