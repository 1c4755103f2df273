"""Runs with every method as student and as teacher: no step passes its quote, and the receipt adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlay.engine.summary import work_of
from outlay.errors import UsageError
from outlay.models.words import joined, new_vectorizer
from outlay.plan.quotes import Quoter
from outlay.plan.request import Request
from outlay.plan.steps import ComputeStep, Distil, Teach, Train
from outlay.report.receipt import receipt
from tests.runs import FamilyWorld, OneByOne, runner
from tests.test_run_families import made_steps

Settings = dict[str, Any]
LORA = {"method": "probe_then_tune", "tune": "lora", "lora_rank": 2}
QUICK = {"probe_strengths": 3}
DISTILLED: list[tuple[str, str, str, str | Settings, str | Settings]] = [
    ("classes", "encoder", "encoder", "probe", "probe"),
    ("classes", "encoder", "encoder", "probe_then_tune", "tfidf"),
    ("classes", "encoder", "encoder", "contrastive", LORA),
    ("classes", "encoder", "encoder", "tfidf", "probe"),
    ("classes", "encoder", "encoder", "majority", "full"),
    pytest.param("classes", "encoder", "encoder", "auto", "auto", marks=pytest.mark.slow),
    ("classes", "seq2seq", "seq2seq", "probe", "probe"),
    pytest.param("classes", "seq2seq", "seq2seq", "full", "tfidf", marks=pytest.mark.slow),
    ("classes", "causal", "encoder", "probe", "probe_then_tune"),
    pytest.param(
        "classes",
        "encoder",
        "causal",
        "probe",
        {"method": "probe_then_tune", "pooling": "mean"},
        marks=pytest.mark.slow,
    ),
    ("pairs", "encoder", "encoder", "contrastive", "probe"),
    pytest.param(
        "pairs", "encoder", "encoder", "probe", {"method": "probe_then_tune", "pair": "joined"}, marks=pytest.mark.slow
    ),
    ("pairs", "causal", "encoder", "full", {"method": "probe_then_tune", "pair": "towers", "eval_steps": 1}),
    ("entities", "encoder", "encoder", "probe", "probe_then_tune"),
    pytest.param("entities", "encoder", "encoder", "full", "probe", marks=pytest.mark.slow),
    pytest.param("entities", "seq2seq", "encoder", "full", "probe", marks=pytest.mark.slow),
    ("entities", "seq2seq", "encoder", "full", "probe_then_tune"),
]


@pytest.fixture(scope="module")
def families(shared_families: FamilyWorld, tmp_path_factory: pytest.TempPathFactory) -> FamilyWorld:
    """The families and their tasks, and ``pairs``, whose rows have two texts."""
    world = shared_families.fresh()
    one = world.tasks["classes"]
    text = one.read_text().replace('text: "{note}"', 'text: "{note} {target}"').replace("name: classes", "name: pairs")
    folder = tmp_path_factory.mktemp("pairs")
    notes = {split: (one.parent / f"{split}.jsonl").read_text() for split in ("train", "dev", "test", "pool")}
    for split, lines in notes.items():
        # Both texts of a row are about the same note.
        found = [line for line in lines.splitlines() if line]
        (folder / f"{split}.jsonl").write_text(
            "".join(line.replace("}", ', "more": "heat the agar"}') + "\n" for line in found)
        )
    text = text.replace('"{note} {target}"', '"{note} {more}"')
    (folder / "task.yaml").write_text(text.replace('prefix: "lab: "', 'prefix: "lab: "\nsegments: [note, more]'))
    world.tasks = {**world.tasks, "pairs": folder / "task.yaml"}
    return world


def overrides(teacher: str | Settings, student: str | Settings) -> dict[str, Settings]:
    of = [{"method": each} if isinstance(each, str) else each for each in (teacher, student)]
    return {"teacher": QUICK | of[0], "student": QUICK | of[1], "distil": QUICK | of[1]}


def within(
    one: OneByOne, request: Request, families: FamilyWorld, monkeypatch: pytest.MonkeyPatch
) -> list[ComputeStep]:
    """Execute a run; every step within its quote, and every dollar on the receipt. The steps that were made."""
    prepared = families.workbench.prepare(request)
    seen = made_steps(one, monkeypatch)
    point = one.execute(prepared)
    assert point.is_ok, point.result.reason
    quoter, run_id = Quoter(prepared.context), prepared.request.run_id
    for step, usage in seen.values():
        artifact = one.store.get(step.key)
        assert artifact is not None, "cut short by its hold"
        actual, bound = work_of(step, artifact, quoter), quoter.work(step)
        assert actual.n_tokens_trained == usage["n_tokens_trained"] <= bound.n_tokens_trained, step
        assert actual.n_tokens_inferred == usage["n_tokens_inferred"] <= bound.n_tokens_inferred, step
        assert actual.n_flops_fitted == usage.get("n_flops_fitted", 0) <= bound.n_flops_fitted, step
        assert all(a <= b for a, b in zip(quoter.flops(actual), quoter.flops(bound), strict=True))
    entries = one.ledger.entries(run_id)
    assert one.ledger.verify().ok
    assert not [entry for entry in entries if entry.kind in ("overrun", "lost")]
    holds = {entry.seq: entry for entry in entries if entry.kind == "hold"}
    settled = [entry for entry in entries if entry.kind == "settle"]
    assert all(entry.charge_micros <= holds[entry.hold_seq].charge_micros for entry in settled)
    charged = {
        step.key: quoter.machine.hours(*quoter.flops(work_of(step, one.store.get(step.key), quoter)))
        for step, _ in seen.values()
    }  # type: ignore[arg-type]
    assert {entry.key: entry.quantity for entry in settled if entry.key in charged} == charged
    paper = receipt(one.ledger, run_id)
    assert (
        paper.charge_micros == sum(line.charge_micros for line in paper.lines) == sum(e.charge_micros for e in settled)
    )
    assert paper.charge_micros + paper.left_charge_micros == paper.budget_micros
    assert point.result.charge_usd == pytest.approx(paper.charge_micros / 1e6)
    return [step for step, _ in seen.values()]  # type: ignore[misc]


def name_of(case: Any) -> str:
    return str(case["method"] if isinstance(case, dict) else case)


@pytest.mark.parametrize(("task", "teacher", "student", "teaches", "learns"), DISTILLED, ids=name_of)
def test_a_distillation_is_within_its_quotes(
    families: FamilyWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    teacher: str,
    student: str,
    teaches: str | Settings,
    learns: str | Settings,
) -> None:
    request = families.family_request(task, teacher, student, overrides=overrides(teaches, learns))
    one = runner(tmp_path / "out", tmp_path / "store")
    steps = within(one, request, families, monkeypatch)
    assert {type(step) for step in steps} >= {Train, Teach, Distil}


@pytest.mark.parametrize(
    ("method", "dev"),
    [
        *((method, "given") for method in ("probe", "probe_then_tune", "contrastive", "tfidf", "majority", "auto")),
        *((method, dev) for method in ("probe_then_tune", "majority") for dev in ("carved", "none")),
        ("contrastive", "carved"),
    ],
)
def test_a_student_of_labels_is_within_its_quotes(
    families: FamilyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dev: str
) -> None:
    asked = overrides("full", method)
    request = families.family_request(
        "classes", "encoder", "encoder", strategy="annotate", n_initial=None, dev=dev, overrides=asked
    )
    within(runner(tmp_path / "out", tmp_path / "store"), request, families, monkeypatch)


def test_the_words_of_a_text_are_quoted_whatever_a_model_reads_of_it(families: FamilyWorld, tmp_path: Path) -> None:
    """The encoder has 64 positions, and TF-IDF reads 100 words."""
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test", "pool"):
        rows = [" ".join(f"word{i}" for i in rng.integers(0, 5000, 99)) for _ in range(20)]
        lines = [f'{{"note": "{row}", "target": "{("warm", "cold")[i % 2]}"}}\n' for i, row in enumerate(rows)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    text = families.tasks["classes"].read_text()
    (tmp_path / "task.yaml").write_text(text.replace("max_source_tokens: 16", "max_source_tokens: 100"))
    families.tasks["long"] = tmp_path / "task.yaml"
    request = families.family_request("long", "encoder", "encoder", n_initial=12, overrides=overrides("tfidf", "tfidf"))
    prepared = families.workbench.prepare(request)
    from outlay.plan.strategies import strategy

    recipe = strategy("distill").ask(prepared.context, [])
    train = next(step for step in recipe.steps() if isinstance(step, Train))  # type: ignore[union-attr]
    n_read = train.n_labels
    words = new_vectorizer(100).fit_transform(joined([(row.text,) for row in prepared.train[:n_read]]))
    n_fits = 5 * 3 + 1
    assert Quoter(prepared.context).work(train).n_flops_fitted >= 1000 * n_fits * 4 * words.nnz * 2


@pytest.mark.parametrize(
    ("task", "teacher", "student", "teaches", "learns"),
    [
        ("classes", "encoder", "encoder", "full", "contrastive"),
        ("classes", "encoder", "encoder", "full", "majority"),
        ("entities", "encoder", "encoder", "contrastive", "full"),
        ("entities", "encoder", "encoder", "full", "tfidf"),
        ("entities", "seq2seq", "seq2seq", "full", "probe"),
        ("questions", "seq2seq", "seq2seq", "probe", "full"),
        ("questions", "seq2seq", "seq2seq", "full", "probe_then_tune"),
    ],
)
def test_what_does_not_suit_is_refused_before_money_is_spent(
    families: FamilyWorld, task: str, teacher: str, student: str, teaches: str, learns: str
) -> None:
    request = families.family_request(task, teacher, student, overrides=overrides(teaches, learns))
    with pytest.raises(UsageError, match="method ") as error:
        families.workbench.check(request)
    assert "\n" not in str(error.value)
