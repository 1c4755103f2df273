"""Where a model fails: scores by label, confusions, reliability, surest wrong answers, label errors, the teacher's own scores."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import outlay
from outlay.engine.point import Point
from outlay.metrics import Answered, main_score, score
from outlay.metrics.calibration import N_BINS
from outlay.metrics.quality import (
    N_SHOWN,
    OTHER,
    GroupScore,
    by_self_confidence,
    label_errors,
    quality_of,
    widest_gap,
)
from outlay.report.quality_section import gap_words
from outlay.settings import ProbeSettings
from outlay.train.probe import held_out_answers
from outlay.train.regression import Work, fit_labels
from tests.test_cli import outlay as command

LABELS = ("no", "yes", "perhaps")
ANSWERS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "whatever"))), min_size=1, max_size=60)


def answered(pairs: list[tuple[str, str]]) -> Answered:
    return Answered([said for _, said in pairs], [gold for gold, _ in pairs], LABELS)


@given(ANSWERS)
def test_scores_by_label_and_confusions_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    own = answered(pairs)
    found = quality_of("accuracy", own, [str(i) for i in range(len(pairs))])
    theirs = precision_recall_fscore_support(own.golds, own.predictions, labels=LABELS, zero_division=0)
    for each, precision, recall, f1, n in zip(found.labels, *theirs, strict=True):
        assert (each.precision, each.recall, each.f1) == pytest.approx(
            (100 * precision, 100 * recall, 100 * f1), abs=0.0051
        )
        assert each.n == n
    matrix = confusion_matrix(own.golds, own.predictions, labels=[*LABELS, "whatever"])
    for i, gold in enumerate(LABELS):
        row = [found.confusion.get(gold, {}).get(answer, 0) for answer in (*LABELS, OTHER)]
        assert row == matrix[i].tolist()
    assert all(n for row in found.confusion.values() for n in row.values())


def probabilities(n: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).dirichlet([0.7] * len(LABELS), n)
    assert isinstance(drawn, np.ndarray)
    return drawn


def test_the_reliability_curve_is_that_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    said = probabilities(400, 3)
    golds = [LABELS[i] for i in np.random.default_rng(4).integers(0, 3, 400)]
    own = Answered([LABELS[i] for i in said.argmax(1)], golds, LABELS)
    found = quality_of("accuracy", own, [str(i) for i in range(400)], said)
    is_right = [answer == gold for answer, gold in zip(own.predictions, golds, strict=True)]
    right, sure = calibration_curve(is_right, said.max(1), n_bins=N_BINS)
    assert [each.accuracy for each in found.reliability] == pytest.approx(100 * right, abs=0.0051)
    assert [each.confidence for each in found.reliability] == pytest.approx(100 * sure, abs=0.0051)
    assert sum(each.n for each in found.reliability) == 400


def test_the_surest_wrong_answers_come_first() -> None:
    said = probabilities(200, 5)
    golds = [LABELS[i] for i in np.random.default_rng(6).integers(0, 3, 200)]
    own = Answered([LABELS[i] for i in said.argmax(1)], golds, LABELS)
    wrong = quality_of("accuracy", own, [f"row {i}" for i in range(200)], said).wrong
    by_hand = sorted((-said[i].max(), f"row {i}") for i in range(200) if LABELS[int(said[i].argmax())] != golds[i])[
        :N_SHOWN
    ]
    assert [each.row for each in wrong] == [row for _, row in by_hand]
    assert all(each.label != each.answer for each in wrong)


def test_group_scores_are_scores_of_the_groups_rows() -> None:
    pairs = [("yes", "yes"), ("no", "yes"), ("yes", "yes"), ("no", "no"), ("perhaps", "no")]
    groups = ["a", "b", "a", "b", "b"]
    found = quality_of("accuracy", answered(pairs), list("12345"), groups=groups).groups
    for name in "ab":
        own = [pair for pair, group in zip(pairs, groups, strict=True) if group == name]
        said, golds = [answer for _, answer in own], [gold for gold, _ in own]
        wanted = score("accuracy", said, golds, LABELS)[main_score("accuracy")].value
        assert found[name] == GroupScore(pytest.approx(wanted, abs=0.0051), len(own))
    assert widest_gap(found) == (pytest.approx(100 - 100 / 3, abs=0.01), "a", "b")


def test_a_gap_that_distillation_widened_is_said() -> None:
    own = {"a": GroupScore(90.0, 50), "b": GroupScore(70.0, 50)}
    assert "20.0 points, a above b" in gap_words(own, {})
    taught = {"a": GroupScore(90.0, 50), "b": GroupScore(85.0, 50)}
    assert "between these two is 5.0: distillation widened it" in gap_words(own, taught)
    assert "did not widen" in gap_words(taught, own)
    assert "nothing to compare" in gap_words({"a": own["a"]}, {})


# --- label errors ----------------------------------------------------------------------------------------------------


def test_flipped_labels_come_out_first_as_by_scikit_learns_own_folds() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 400)
    vectors = rng.normal(0, 0.7, (400, 8)) + 2 * np.eye(3, 8)[classes]
    given_classes, wrong = classes.copy(), rng.choice(400, 20, replace=False)
    given_classes[wrong] = (classes[wrong] + 1) % 3
    fits = Work(lambda _: True, lambda _: None)
    settings = ProbeSettings(choose_by="log_loss", class_weight="none")
    found = fit_labels(vectors, given_classes, 3, settings, fits, seed=1)
    held_out = held_out_answers(found, given_classes)

    model = LogisticRegression(C=found.strength, max_iter=1000)
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    theirs = cross_val_predict(model, vectors, given_classes, cv=folds, method="predict_proba")
    own = np.array([each[2] for each in held_out])
    assert own == pytest.approx(theirs[np.arange(400), given_classes], abs=2e-3)
    assert [each[0] for each in held_out] == theirs.argmax(1).tolist()
    assert len(set(by_self_confidence(held_out)[:20]) & set(wrong.tolist())) >= 16

    names = [LABELS[i] for i in given_classes]
    likely = label_errors([str(i) for i in range(400)], names, LABELS, held_out)
    assert len(likely) == N_SHOWN
    assert all(each.answer != each.label for each in likely)
    assert {int(each.row) for each in likely} <= set(by_self_confidence(held_out)[:40])


# --- in a run --------------------------------------------------------------------------------------------------------

N_FLIPPED = 3
"""Training rows whose label is wrong on purpose, the first ones."""
TASK = """
name: tones
text: "{message}"
labels: [good, bad]
price_item: label/demo
max_source_tokens: 24
data:
  train: {file: train.jsonl, target: label}
  dev: {file: dev.jsonl, target: label}
  test: {file: test.jsonl, target: label, group: dialect}
pool:
  - {name: more, file: pool.jsonl}
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of annotating and distilling with rivals, on test rows of two dialects."""
    from tests.checkpoints import kept_checkpoint

    root = tmp_path_factory.mktemp("quality")
    kept_checkpoint(root / "checkpoint")
    (root / "task.yaml").write_text(TASK)
    rng = np.random.default_rng(7)

    def rows(n: int, start: int) -> list[dict[str, str]]:
        made = []
        for i in range(n):
            label = ("good", "bad")[int(rng.integers(2))]
            words = {"good": "fine nice great", "bad": "awful poor sad"}[label].split()
            text = " ".join(
                [str(rng.choice(words)), "thing", *rng.choice(["it", "was", "the", "a", "of"], 4), str(start + i)]
            )
            made.append({"message": text, "label": label, "dialect": "north" if i % 3 else "south"})
        return made

    for name, n, start in (("train", 60, 0), ("dev", 20, 100), ("test", 45, 200), ("pool", 60, 300)):
        made = rows(n, start)
        for each in made[:N_FLIPPED] if name == "train" else ():
            each["label"] = {"good": "bad", "bad": "good"}[each["label"]]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)) + "\n")
    ran = command(
        *("compare", root / "task.yaml", "--budgets", "8", "--strategies", "annotate,distill", "--threads", "1"),
        *("--teacher", root / "checkpoint", "--precision", "fp32", "--set", "student.epochs=2"),
        *(
            "--set",
            "distil.epochs=2",
            "--set",
            "teacher.method=probe",
            "--out",
            root / "out",
            "--store",
            root / "store",
        ),
    )
    assert ran.code == 0, ran.err
    return root


def rows_of(root: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def points_of(root: Path) -> dict[str, Point]:
    documents = json.loads((root / "out" / "points.json").read_text())
    return {point.request.strategy: point for point in map(Point.from_json, documents)}


def test_the_teacher_is_scored_beside_at_no_charge(compared: Path) -> None:
    from outlay.study.runner import reopen_study

    point = points_of(compared)["distill"]
    runner = reopen_study(compared / "out")
    (manifest,) = [
        document
        for path in (compared / "out" / "runs").glob("*/manifest.json")
        if (document := json.loads(path.read_text()))["point"]["request"]["strategy"] == "distill"
    ]
    keys = {each["role"]: each["key"] for each in manifest["artifacts"]}
    teacher = runner.store.get(keys["teacher"])
    assert teacher is not None
    rows = rows_of(compared, "test")
    said = outlay.load_model(teacher.path).predict([row["message"] for row in rows])
    right = sum(answer == row["label"] for answer, row in zip(said, rows, strict=True))
    assert point.result.teacher_test is not None
    assert point.result.teacher_test.value == pytest.approx(100 * right / len(rows))
    lines = [entry for entry in runner.ledger.entries(manifest["run_id"]) if "score the teacher" in entry.note]
    assert [entry.charge_micros for entry in lines if entry.kind == "settle"] == [0]
    assert "teacher_scores" not in manifest["charges_micros"]
    paid = round(1e6 * sum(manifest["charges_micros"].values()) / 1e6)
    assert paid == round(1e6 * point.result.charge_usd)
    receipt = (compared / "out" / "receipts" / f"{manifest['run_id']}.txt").read_text()
    assert f"the teacher's own test score {point.result.teacher_test.value:.1f}" in receipt


def test_points_hold_where_each_model_fails(compared: Path) -> None:
    points = points_of(compared)
    for strategy, point in points.items():
        quality = point.result.quality
        assert quality is not None, strategy
        assert sum(n for row in quality.confusion.values() for n in row.values()) == 45
        right = sum(row.get(gold, 0) for gold, row in quality.confusion.items())
        assert point.result.test == pytest.approx(100 * right / 45)
        assert {name: each.n for name, each in quality.groups.items()} == {"north": 30, "south": 15}
    flipped = {each["message"] for each in rows_of(compared, "train")[:N_FLIPPED]}
    likely = [each.row for each in points["distill"].result.label_errors]
    assert {sha256(text.encode()).hexdigest() for text in flipped} & set(likely)
    lines = (compared / "out" / "points.json").read_text().splitlines()
    assert sum('"quality": {' in line and line.rstrip().endswith(("}", "},")) for line in lines) >= len(points)


def test_the_page_shows_them_with_texts_and_the_model_carries_no_text(compared: Path) -> None:
    page = unescape((compared / "out" / "report.html").read_text())
    assert "Is it any good?" in page
    for heading in ("By label", "Confusions", "Reliability", "By group", "Size on disk"):
        assert heading in page
    named = [each.row for each in points_of(compared)["distill"].result.label_errors]
    train = {sha256(each["message"].encode()).hexdigest(): each["message"] for each in rows_of(compared, "train")}
    assert named
    assert all(train[row] in page for row in named)
    model = compared / "out" / "model"
    assert not (model / "held_out.json").exists()
    said = "".join(path.read_text(errors="ignore") for path in model.rglob("*") if path.suffix in (".json", ".md"))
    assert not [text for text in train.values() if text in said]
    assert re.search(r"<h3>By group</h3>.*?(north|south)", page, re.S)
