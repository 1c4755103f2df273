"""Runs end to end for every kind of task and every pair of families: nothing passes its quote, every metric is filled in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.step_runner import StepRunner
from outlay.errors import UnknownModel, UsageError
from outlay.labels.purchases import label_lines, parse_label_lines
from outlay.metrics import STATISTICS
from outlay.plan.context import reading_key
from outlay.plan.quotes import Quoter
from outlay.plan.steps import PREDICTIONS_FILE, Buy, Distil, Step, Teach, Train
from outlay.plan.strategies import strategy
from tests.listeners import Onlooker
from tests.runs import FamilyWorld, OneByOne, runner

PUBLISHED = {"distil": {"objective": "published", "temperature": 2.0}}
CASES: list[Any] = [
    ("classes", "encoder", "encoder", "classes", {}),
    pytest.param("classes", "seq2seq", "seq2seq", "tokens", {"teach": {"beams": 2}}, marks=pytest.mark.slow),
    ("classes", "seq2seq", "padded", "tokens", PUBLISHED),
    pytest.param("classes", "causal", "seq2seq", "classes", {"distil": {"gold_weight": 0.5}}, marks=pytest.mark.slow),
    ("classes", "causal", "encoder", "classes", {"distil": {"gold_weight": 0.5, "divergence": "js"}}),
    pytest.param("classes", "encoder", "seq2seq", "classes", {"teach": {"max_logits": 0}}, marks=pytest.mark.slow),
    ("entities", "encoder", "encoder", "tags", {"distil": {"gold_weight": 0.3}}),
    ("entities", "seq2seq", "encoder", "text", {"distil": {"gold_weight": 0.3}}),
    pytest.param("entities", "encoder", "seq2seq", "text", {"distil": {"eval_steps": 2}}, marks=pytest.mark.slow),
    ("entities", "seq2seq", "seq2seq", "tokens", {"distil": {"gold_weight": 0.5}, "teach": {"sample": True}}),
    ("questions", "causal", "seq2seq", "text", {"teach": {"beams": 3}, "teacher": {"eval_steps": 1}}),
    pytest.param("questions", "seq2seq", "seq2seq", "tokens", PUBLISHED, marks=pytest.mark.slow),
    ("paraphrases", "seq2seq", "seq2seq", "tokens", {"distil": {"gold_weight": 0.5, "divergence": "reverse_kl"}}),
]


@pytest.fixture(scope="session")
def families(shared_families: FamilyWorld) -> FamilyWorld:
    return shared_families.fresh()


def made_steps(one: OneByOne, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Step, dict[str, Any]]]:
    """Every compute step that is made from here on, with what it used."""
    seen: dict[str, tuple[Step, dict[str, Any]]] = {}
    make = StepRunner.make

    def watched(self: StepRunner, step: Step, bench: Any) -> Any:
        made = make(self, step, bench)
        seen[step.key] = (step, made.usage)
        return made

    monkeypatch.setattr(StepRunner, "make", watched)
    return seen


@pytest.mark.parametrize(("task", "teacher", "student", "target", "overrides"), CASES)
def test_every_kind_and_family_within_its_quotes(
    families: FamilyWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    teacher: str,
    student: str,
    target: str,
    overrides: dict[str, dict[str, Any]],
) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = families.workbench.prepare(families.family_request(task, teacher, student, overrides=overrides))
    seen = made_steps(one, monkeypatch)
    point = one.execute(prepared)
    assert point.result.status == "ok", point.result.reason
    quoter = Quoter(prepared.context)
    for step, usage in seen.values():
        bound = quoter.work(step)
        assert 0 <= usage["n_tokens_trained"] <= bound.n_tokens_trained, step
        assert 0 < usage["n_tokens_inferred"] <= bound.n_tokens_inferred, step
    assert {type(step) for step, _ in seen.values()} >= {Train, Teach, Distil}
    assert {step.target for step, _ in seen.values() if isinstance(step, Teach)} == {target}
    assert not [entry for entry in one.ledger.entries() if entry.kind == "overrun"]
    assert one.ledger.verify().ok
    metric = prepared.task.metric
    expected = {f"{name}/{reading}" for name in STATISTICS[metric] for reading in ("published", "strict")}
    assert set(point.result.scores) == expected
    assert one.finished(prepared.request.run_id) == point


def test_a_paraphrase_keeps_what_it_was_compared_with(families: FamilyWorld, tmp_path: Path) -> None:
    options = families.family_request("paraphrases", "seq2seq", "seq2seq", strategy="annotate", n_initial=None)
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = families.workbench.prepare(options)
    point = one.execute(prepared)
    assert point.is_ok, point.result.reason
    manifest = json.loads(one.run_folder(prepared.request.run_id).manifest.read_text())
    artifact = one.store.get(next(a["key"] for a in manifest["artifacts"] if a["step"] == "score"))
    assert artifact is not None
    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text())
    assert said["sources"] == [row.text for row in prepared.test]
    assert len(said["similarities"]) == len(said["predictions"]) == 10
    assert all(-1 <= value <= 1.0001 for value in said["similarities"])


def test_the_gold_of_bought_pool_rows_is_mixed_in_and_no_other(families: FamilyWorld, tmp_path: Path) -> None:
    overrides = {"distil": {"gold_weight": 0.5}}
    options = families.family_request("entities", "encoder", "encoder", overrides=overrides)
    prepared = families.workbench.prepare(options)
    one = runner(tmp_path / "out", tmp_path / "store")
    bought = next(s for s in _steps(prepared) if isinstance(s, Buy))
    one.execute(prepared)
    shop = StepRunner(prepared, lambda step: one.store.get(step.key))  # type: ignore[arg-type, return-value]
    gold = shop._gold((bought,), prepared.pool)
    known = {row.text: row.label for row in prepared.train[: bought.n]}
    assert gold == [known.get(row.text) for row in prepared.pool]
    assert sum(answer is not None for answer in gold) == bought.n == 12


def _steps(prepared: Any) -> list[Step]:
    recipe = strategy(prepared.request.strategy).ask(prepared.context, [])
    steps: list[Step] = recipe.steps()  # type: ignore[union-attr]
    return steps


def test_rows_that_were_cut_are_counted_and_told(families: FamilyWorld, tmp_path: Path) -> None:
    text = families.tasks["entities"].read_text()
    short = text.replace("max_source_tokens: 16", "max_source_tokens: 6").replace("name: entities", "name: short")
    task = families.tasks["entities"].with_name("short.yaml")
    task.write_text(short.replace("max_target_tokens: 16", "max_target_tokens: 4"))
    listener = Onlooker()
    one = runner(tmp_path / "out", tmp_path / "store")
    options = families.family_request("entities", "seq2seq", "seq2seq", strategy="annotate", n_initial=None)
    options = replace(options, task=str(task))
    assert one.execute(families.workbench.prepare(options), listener).is_ok
    lines = listener.lines
    n = next(int(line.split(" train labels")[0]) for line in lines if "train labels: at most" in line)
    assert f"{n} of {n} rows were longer than 6 tokens and were cut" in lines
    assert f"{n} of {n} answers were longer than 4 tokens and were cut" in lines


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_an_encoder_cannot_write(families: FamilyWorld, role: str) -> None:
    names = {"teacher": "seq2seq", "student": "seq2seq"} | {role: "encoder"}
    options = families.family_request("questions", names["teacher"], names["student"])
    with pytest.raises(UsageError, match=r"encoder .*questions; name a seq2seq"):
        families.workbench.resolve(options)


def test_a_teacher_that_is_not_asked_may_be_an_encoder(families: FamilyWorld) -> None:
    options = families.family_request("questions", "encoder", "seq2seq", strategy="annotate", n_initial=None)
    keys = {reading_key(options.student, "whole"), reading_key(options.student, "joined")}
    assert set(families.workbench.prepare(options).context.tokens) == keys


@pytest.mark.parametrize(
    ("task", "teacher", "student"), [("classes", "encoder", "encoder"), ("questions", "causal", "seq2seq")]
)
def test_the_published_objective_needs_one_vocabulary(
    families: FamilyWorld, task: str, teacher: str, student: str
) -> None:
    with pytest.raises(UsageError, match="objective=masked"):
        families.workbench.check(families.family_request(task, teacher, student, overrides=PUBLISHED))


def test_the_encoder_that_measures_is_named_or_refused(families: FamilyWorld) -> None:
    options = families.family_request("paraphrases", "seq2seq", "seq2seq")
    other = families.family_request(
        "paraphrases", "seq2seq", "seq2seq", metric_model=str(families.checkpoints["causal"])
    )
    assert families.workbench.resolve(options).run_id != families.workbench.resolve(other).run_id
    missing = families.family_request("paraphrases", "seq2seq", "seq2seq", metric_model="./none")
    with pytest.raises(UnknownModel, match="--metric-model"):
        families.workbench.resolve(missing)
    with pytest.raises(UsageError, match=r"qa_f1.*--metric-model"):
        families.workbench.resolve(families.family_request("questions", "seq2seq", "seq2seq", metric_model="x/y"))


def test_the_general_student_is_the_student_of_its_strategy_alone(families: FamilyWorld) -> None:
    encoder = str(families.checkpoints["encoder"])
    options = families.family_request("classes", "encoder", "seq2seq", strategy="general_distill", general=encoder)
    prepared = families.workbench.prepare(options)
    assert (prepared.request.student, prepared.context.student.ref) == (encoder, encoder)
    assert "publicly available" in strategy("general_distill").ask(prepared.context, []).derivation[1]  # type: ignore[union-attr]
    assert families.workbench.resolve(families.family_request("classes", "encoder", "seq2seq")).student != encoder


def test_a_label_may_hold_any_character() -> None:
    labels = ["plain", "two\nlines", "a\u2028b", "c\x85d", "e\x0bf\x1cg", "", "ж \U0001f9ea"]
    written = label_lines([(str(i), label) for i, label in enumerate(labels)])
    assert list(parse_label_lines(written).values()) == labels
    assert written.count(b"\n") == len(labels)
