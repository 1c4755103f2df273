"""A metric with its encoder, as single steps and runs use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlay.errors import UnknownModel
from outlay.metrics import score
from outlay.metrics.scorer import Scorer, TextEncoder, choose_encoder
from tests.steps_world import StepsWorld


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return StepsWorld.make(tmp_path_factory.mktemp("world")).model("bert")


def test_what_is_not_given_is_as_the_task_says_of_its_own_encoder(encoder: str) -> None:
    own = TextEncoder(encoder, 1, True)
    assert choose_encoder(None, None) is None
    assert choose_encoder(own, None) == own
    assert choose_encoder(own, None, layer=0, idf=False) == TextEncoder(encoder, 0, False)
    # A layer is a layer of one checkpoint.
    assert choose_encoder(own, encoder) == TextEncoder(encoder, None, False)
    with pytest.raises(UnknownModel):
        choose_encoder(own, None, layer=99)


def test_scores_are_those_of_the_metric() -> None:
    answers, golds, sources = ["yes", "no", "yes"], ["yes", "yes", "yes"], ["a", "b", "c"]
    scorer = Scorer("accuracy", ("yes", "no"))
    assert scorer.score(answers, golds, sources) == score("accuracy", answers, golds, ("yes", "no"))
    assert scorer.main_value(answers, golds, sources) == pytest.approx(200 / 3)
    assert scorer.main_value(answers[:1], golds, sources) == 100
    assert scorer.similarities(answers, sources) == []
    assert scorer.identity() == {"metric": "accuracy"}


def test_an_encoder_is_loaded_once_and_belongs_to_the_identity(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Fixed:
        def __init__(self, ref: str, *, layer: int | None, idf: bool) -> None:
            made.append(f"{Path(ref).name} {layer} {idf}")

        def f1(self, answers: list[str], sources: list[str]) -> list[float]:
            return [0.25] * len(sources)

    monkeypatch.setattr("outlay.metrics.bertscore.BertScore", Fixed)
    scorer = Scorer("bert_ibleu", (), TextEncoder(encoder, 1, True))
    plain = score("bert_ibleu", ["x"], ["y"], (), sources=["a b"], similarities=[0.25])
    assert scorer.score(["x"], ["y"], ["a b"]) == plain == scorer.score(["x"], ["y"], ["a b"], [0.25])
    assert scorer.main_value(["x"], ["y"], ["a b"]) == plain[scorer.main].value
    assert made == [f"{Path(encoder).name} 1 True"]
    assert scorer.identity() == {"metric": "bert_ibleu", "metric_model": encoder, "metric_layer": 1, "metric_idf": True}
