"""Keys of steps: equal exactly when the same was asked; and the order of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.plan.steps import Buy, Dev, Distil, Encoding, Judge, Model, Recipe, Score, Step, Teach, Train, graph
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec

FORM = TaskSpec("classification", ("no", "yes"), 64, 8, "say: ")
ENCODING = Encoding(("text",), FORM, "accuracy")
JUDGE = Judge("org/judge", 3, True, "judge's bytes")
MODEL = Model("org/name", "org/name", "bytes")
SETTINGS = TrainSettings(epochs=3, batch_size=8, learning_rate=1e-3, precision="bf16")
LABELS = Buy("train", 5, 0, "rows", "seller")
MORE = Buy("train", 7, 0, "rows", "a model", start=5, seller="llm")
DEV = Dev("given", 3, rows_digest="dev rows")
ALIKE: dict[str, Any] = {"dev": DEV, "encoding": ENCODING, "settings": SETTINGS, "threads": 2}
TRAIN = Train(role="teacher", model=MODEL, labels=(LABELS,), **ALIKE)
SPEECH = TeachSettings()
BLOCKS = tuple(
    Teach(TRAIN, start, start + 4, f"rows from {start}", "tokens", SPEECH, 97, threads=2) for start in (0, 4, 8)
)
DISTIL = Distil(model=Model("cut:1", "org/name", "bytes"), targets=BLOCKS, **ALIKE)
SCORE = Score(DISTIL, "test rows", 2)


def changed(step: Step, name: str, value: object) -> Step:
    return replace(step, **{name: value})


@pytest.mark.parametrize(
    ("step", "name", "value"),
    [
        (LABELS, "split", "dev"),
        (LABELS, "n", 6),
        (LABELS, "order_seed", 1),
        (LABELS, "rows_digest", "other rows"),
        (LABELS, "identity", "another"),
        (LABELS, "start", 1),
        (TRAIN, "model", replace(MODEL, fingerprint="other bytes")),
        (TRAIN, "model", replace(MODEL, ref="cut:2")),
        (TRAIN, "labels", (replace(LABELS, n=6),)),
        (TRAIN, "dev", None),
        (TRAIN, "dev", replace(DEV, n=2)),
        (TRAIN, "dev", replace(DEV, rows_digest="other dev rows")),
        (TRAIN, "dev", Dev("bought", 3, labels=replace(LABELS, split="dev"))),
        (TRAIN, "dev", Dev("carved", 3, labels=LABELS)),
        (TRAIN, "encoding", replace(ENCODING, form=replace(FORM, max_source_tokens=65))),
        (TRAIN, "encoding", replace(ENCODING, form=replace(FORM, max_target_tokens=9))),
        (TRAIN, "encoding", replace(ENCODING, form=replace(FORM, prefix=""))),
        (TRAIN, "encoding", replace(ENCODING, form=replace(FORM, kind="entities"))),
        (TRAIN, "encoding", replace(ENCODING, judge=JUDGE)),
        (TRAIN, "encoding", replace(ENCODING, segments=("a", "b"))),
        (TRAIN, "encoding", replace(ENCODING, form=replace(FORM, labels=("yes", "no")))),
        (TRAIN, "encoding", replace(ENCODING, metric="f1")),
        (TRAIN, "labels", (LABELS, MORE)),
        (replace(TRAIN, labels=(LABELS, MORE)), "labels", (MORE, LABELS)),
        (replace(TRAIN, labels=(LABELS, MORE)), "labels", (LABELS, replace(MORE, n=8))),
        (replace(TRAIN, labels=(LABELS, MORE)), "labels", (LABELS, replace(MORE, start=6))),
        (replace(TRAIN, labels=(LABELS, MORE)), "labels", (LABELS, MORE, replace(MORE, start=12))),
        (TRAIN, "threads", 1),
        (BLOCKS[0], "teacher", replace(TRAIN, threads=1)),
        (BLOCKS[0], "rows_digest", "other rows"),
        (BLOCKS[0], "stop", 3),
        (BLOCKS[0], "target", "text"),
        (BLOCKS[0], "vocab_size", 96),
        (BLOCKS[0], "vocab_size", None),
        (BLOCKS[0], "settings", replace(SPEECH, beams=4)),
        (BLOCKS[0], "settings", replace(SPEECH, keep_padding=True)),
        (BLOCKS[0], "settings", replace(SPEECH, max_logits=0)),
        (BLOCKS[0], "threads", 1),
        (BLOCKS[0], "teacher", replace(TRAIN, settings=replace(SETTINGS, precision="fp32"))),
        (DISTIL, "targets", BLOCKS[:2]),
        (DISTIL, "model", MODEL),
        (DISTIL, "dev", None),
        (DISTIL, "settings", replace(SETTINGS, temperature=3.0)),
        (DISTIL, "threads", 1),
        (DISTIL, "gold", (LABELS,)),
        (replace(DISTIL, gold=(LABELS,)), "gold", (LABELS, MORE)),
        (SCORE, "model", TRAIN),
        (SCORE, "rows_digest", "other rows"),
        (SCORE, "threads", 1),
    ],
)
def test_whatever_changes_the_result_changes_the_key(step: Step, name: str, value: object) -> None:
    assert changed(step, name, value).key != step.key
    assert changed(step, name, getattr(step, name)).key == step.key


@pytest.mark.parametrize("field", [*SETTINGS.to_json()])
def test_every_setting_is_in_the_key(field: str) -> None:
    named: dict[str, object] = {
        "patience": 2,
        "dropout": 0.25,
        "precision": "fp32",
        "seed": 1,
        "epochs": 4,
        "batch_size": 4,
        "objective": "published",
        "divergence": "js",
        "gold_weight": 0.5,
        "micro_batch_size": 2,
        "optimizer": "adafactor",
        "gradient_checkpointing": True,
        "eval_steps": 7,
        "eval_share": 0.04,
        "batch_tokens": 640,
        "compile": True,
        "peft": "lora",
        "lora_rank": 4,
    }
    value = named[field] if field in named else SETTINGS.to_json()[field] / 2
    assert replace(TRAIN, settings=SETTINGS.changed({field: value})).key != TRAIN.key


def test_a_judge_is_its_bytes_and_how_it_is_read() -> None:
    judged = replace(ENCODING, judge=JUDGE)
    assert replace(judged, judge=replace(JUDGE, ref="/elsewhere")).parameters() == judged.parameters()
    for change in ({"layer": None}, {"idf": False}, {"fingerprint": "other"}):
        assert replace(judged, judge=replace(JUDGE, **change)).parameters() != judged.parameters()


def test_who_a_model_is_for_and_who_pays_do_not_change_it() -> None:
    assert replace(TRAIN, role="student").key == TRAIN.key
    assert replace(TRAIN, free=True).key == TRAIN.key
    assert replace(LABELS, seller="llm").key == LABELS.key  # who that is, the seller's identity says


def test_keys_stay_what_they_were_before_a_training_could_have_two_sellers() -> None:
    carved = replace(TRAIN, dev=Dev("carved", 3, labels=LABELS))
    assert LABELS.key == "5c0914b9d4a88498c079de1e76e4ccb60bc0c4138685fed1296fdcc19ef75e44"
    assert LABELS.series == "ec7a9531a8473bbba4acfa461913cbdbd72f632bb81ab397b58b8cd44d9fb09a"
    assert TRAIN.key == "2930f4d2a33106ae560e6faa719ea510c188a1819052534d408d4b24bf14808a"
    assert carved.key == "a1c5b3181a147578d2d20b66104c4feb34dc7c0e62fac11efbf1508f2db272b0"
    assert DISTIL.key == "bf936c8580e75a6e4b432caf1d7658c3586d74a999bbc52a8bf83e7ea1b40c29"
    assert SCORE.key == "34f145c0a3d9637cbccd32d5013e844afc4d34ce768f0485092878219e2aa946"


def test_a_training_reads_its_purchases_in_order_and_counts_them_by_who_gave_them() -> None:
    both = replace(TRAIN, labels=(LABELS, MORE), dev=Dev("carved", 3, labels=LABELS))
    assert both.inputs == (LABELS, MORE, LABELS)
    assert (both.n_labels, both.n_labels_of("human"), both.n_labels_of("llm")) == (12, 5, 7)
    assert (TRAIN.n_labels, TRAIN.n_labels_of("human"), TRAIN.n_labels_of("llm")) == (5, 5, 0)
    assert (MORE.start, MORE.stop, LABELS.stop) == (5, 12, 5)
    assert [step.key for step in graph([both])] == [LABELS.key, MORE.key, both.key]


def test_a_checkpoint_is_its_bytes_and_a_block_its_rows() -> None:
    moved = replace(MODEL, ref="/elsewhere", base="/elsewhere")
    assert replace(TRAIN, model=moved).key == TRAIN.key
    assert replace(BLOCKS[1], start=104, stop=108).key == BLOCKS[1].key
    assert replace(DISTIL, model=replace(DISTIL.model, base="/elsewhere")).key == DISTIL.key


def test_kinds_with_equal_parameters_have_different_keys() -> None:
    steps: list[Step] = [LABELS, TRAIN, *BLOCKS, DISTIL, SCORE]
    assert len({step.key for step in steps}) == len(steps)
    assert [step.request()["step"] for step in (LABELS, TRAIN, DISTIL, SCORE)] == ["buy", "train", "distil", "score"]


def test_a_new_version_of_a_step_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(TRAIN).key
    monkeypatch.setattr(Train, "version", Train.version + 1)
    assert replace(TRAIN).key != old
    assert replace(LABELS).key == LABELS.key


PURCHASES = st.builds(
    Buy,
    split=st.sampled_from(["train", "dev"]),
    n=st.integers(1, 3),
    order_seed=st.integers(0, 2),
    rows_digest=st.sampled_from(["a", "b"]),
    identity=st.sampled_from(["x", "y"]),
    start=st.integers(0, 2),
)
TRAININGS = st.builds(
    Train,
    role=st.sampled_from(["teacher", "student"]),
    model=st.sampled_from([MODEL, replace(MODEL, fingerprint="other")]),
    labels=st.tuples(PURCHASES) | st.tuples(PURCHASES, st.sampled_from([MORE, LABELS])),
    dev=st.sampled_from([None, DEV, Dev("bought", 3, labels=replace(LABELS, split="dev"))]),
    encoding=st.just(ENCODING),
    settings=st.sampled_from([SETTINGS, replace(SETTINGS, seed=1)]),
    threads=st.integers(1, 2),
    free=st.booleans(),
)


@given(PURCHASES, PURCHASES)
def test_purchases_share_a_key_exactly_when_they_are_equal(one: Buy, other: Buy) -> None:
    assert (one.key == other.key) == (one == other)
    assert (one.series == other.series) == (replace(one, n=1, start=0) == replace(other, n=1, start=0))


@given(TRAININGS, TRAININGS)
def test_trainings_share_a_key_exactly_when_they_train_alike(one: Train, other: Train) -> None:
    def alike(step: Train) -> Train:
        return replace(step, role="any", free=False)

    assert (one.key == other.key) == (alike(one) == alike(other))


def test_a_graph_names_every_step_once_and_inputs_first() -> None:
    steps = Recipe(SCORE, ()).steps()
    assert [step.key for step in steps] == [step.key for step in (LABELS, TRAIN, *BLOCKS, DISTIL, SCORE)]
    for i, step in enumerate(steps):
        assert {given_step.key for given_step in step.inputs} <= {earlier.key for earlier in steps[:i]}


def test_two_recipes_share_what_they_have_in_common() -> None:
    short = replace(DISTIL, targets=BLOCKS[:1])
    together = graph([Score(short, "test rows", 2), SCORE])
    alone = len(graph([SCORE]))
    assert len(together) == alone + 2  # the shorter student and its score; labels, teacher and first block are shared
    assert [s.key for s in graph([SCORE, SCORE])] == [s.key for s in graph([SCORE])]
    assert graph([]) == []


def test_the_rows_of_a_distillation_end_where_its_last_block_ends() -> None:
    assert DISTIL.n_rows == 12
