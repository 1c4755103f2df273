"""The model that a run or a comparison hands over: which one it is, that it loads by the lines of its own card, that it stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import precision_recall_fscore_support

import outlay
from outlay.errors import MissingData, UsageError
from outlay.metrics import Answered
from outlay.metrics.per_class import label_scores
from outlay.storage.store import Store
from outlay.text.entities import parse_entities
from tests.runs import FAST, FamilyWorld, World
from tests.test_method_runs import Settings, families, overrides

__all__ = ["families"]

# Task, student, method of the student; a student that learns from targets where there is a teacher too.
CASES: list[Any] = [
    ("classes", None, "encoder", "full"),
    ("classes", None, "encoder", "probe"),
    pytest.param("classes", None, "encoder", {"method": "probe", "pooling": "first"}, marks=pytest.mark.slow),
    pytest.param("classes", None, "encoder", "probe_then_tune", marks=pytest.mark.slow),
    ("classes", None, "encoder", "contrastive"),
    ("classes", None, "encoder", "lora"),
    pytest.param("classes", None, "encoder", "ia3", marks=pytest.mark.slow),
    ("classes", None, "encoder", "tfidf"),
    pytest.param("classes", None, "encoder", "majority", marks=pytest.mark.slow),
    pytest.param("classes", None, "seq2seq", "full", marks=pytest.mark.slow),
    ("classes", None, "causal", "full"),
    ("classes", None, "seq2seq", "probe"),
    pytest.param("classes", None, "causal", "probe", marks=pytest.mark.slow),
    ("classes", "encoder", "seq2seq", "full"),
    pytest.param("classes", "encoder", "causal", "full", marks=pytest.mark.slow),
    pytest.param("pairs", None, "encoder", "full", marks=pytest.mark.slow),
    ("pairs", None, "encoder", "probe"),
    pytest.param("pairs", None, "encoder", {"method": "probe", "pair": "joined"}, marks=pytest.mark.slow),
    pytest.param("pairs", None, "encoder", "contrastive", marks=pytest.mark.slow),
    pytest.param("pairs", None, "encoder", "tfidf", marks=pytest.mark.slow),
    ("entities", None, "encoder", "full"),
    pytest.param("entities", None, "encoder", "probe", marks=pytest.mark.slow),
    ("questions", None, "seq2seq", "full"),
    pytest.param("questions", None, "causal", "full", marks=pytest.mark.slow),
]


def handed(
    families: FamilyWorld, out: Path, task: str, teacher: str | None, student: str, method: str | Settings
) -> Path:
    """The folder that a run of one case hands over."""
    asked = families.family_request(task, teacher or student, student, overrides=overrides("full", method))
    result = outlay.run(
        families.tasks[task],
        4,
        out=out,
        strategy="annotate" if teacher is None else "distill",
        n_initial=None if teacher is None else 12,
        models=outlay.Models(teacher=asked.teacher, student=asked.student),
        options=outlay.RunOptions(threads=1, rivals=False, settings=dict(asked.overrides)),
        setup=outlay.Setup(store=out / "store"),
    ).raise_for_status()
    assert result.model_path == out / "model"
    return result.model_path


def lines_of(model: Path) -> str:
    """The Python of a card, with the folder in the place of MODEL."""
    found = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(found) == 1
    return str(found[0]).replace("MODEL", str(model))


@pytest.mark.parametrize(("task", "teacher", "student", "method"), CASES)
def test_the_lines_of_the_card_give_the_answers_of_predict(
    families: FamilyWorld, tmp_path: Path, task: str, teacher: str | None, student: str, method: str | Settings
) -> None:
    model = handed(families, tmp_path / "out", task, teacher, student, method)
    lines = lines_of(model)
    assert "outlay" not in lines.replace(str(model), "")
    if "sentence_transformers" in lines:
        pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    rows = [
        json.loads(line)
        for split in ("test", "pool")
        for line in (families.tasks[task].parent / f"{split}.jsonl").read_text().splitlines()
    ]
    known = outlay.load_model(tmp_path / "out").predict(rows, precision="fp32")
    there: dict[str, Any] = {}
    exec(lines, there)
    found = [there["answer"](row) for row in rows]
    if task == "entities":
        types = outlay.load_task(families.tasks[task]).labels
        assert [[(each.text, each.label) for each in parse_entities(line, types)] for line in known] == found
        assert any(found)
    else:
        assert known == found


def test_the_lines_import_nothing_of_outlay(
    families: FamilyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = handed(families, tmp_path / "out", "classes", None, "encoder", "full")
    for name in [name for name in sys.modules if name.split(".")[0] == "outlay"]:
        monkeypatch.setitem(sys.modules, name, None)
    there: dict[str, Any] = {}
    exec(lines_of(model), there)
    assert there["answer"]({"note": "heat the agar", "target": "cold"}) in ("warm", "cold")
    assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert set(json.loads((model / "config.json").read_text())["id2label"].values()) == {"warm", "cold"}


@pytest.mark.slow
def test_the_lines_run_without_outlay(families: FamilyWorld, tmp_path: Path) -> None:
    model = handed(families, tmp_path / "out", "classes", None, "encoder", "full")
    asked = 'print(answer({"note": "heat the agar", "target": "cold"}))'
    forbidden = "import sys; sys.modules['outlay'] = None\n"
    ran = subprocess.run(
        [sys.executable, "-c", forbidden + lines_of(model) + asked], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() in ("warm", "cold")
    assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert set(json.loads((model / "config.json").read_text())["id2label"].values()) == {"warm", "cold"}


def test_long_texts_do_not_break_a_pipeline(families: FamilyWorld, tmp_path: Path) -> None:
    model = handed(families, tmp_path / "out", "classes", None, "encoder", "full")
    there: dict[str, Any] = {}
    exec(lines_of(model), there)
    assert there["answer"]({"note": "heat the agar " * 2000}) in ("warm", "cold")


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_is_read_back_whole_by_the_hub_library(families: FamilyWorld, tmp_path: Path) -> None:
    model = handed(families, tmp_path / "out", "pairs", None, "encoder", "probe")
    card, points = ModelCard.load(model / "README.md"), json.loads((tmp_path / "out" / "points.json").read_text())
    scores = points[0]["result"]["scores"]
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results is not None
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == {
        name: pytest.approx(score["value"], abs=1e-4) for name, score in scores.items()
    }
    text = card.text
    receipt = next((tmp_path / "out" / "receipts").glob("*.txt")).read_text()
    where = f"model: {model}\n"
    assert where in receipt.replace("\n/", " /")
    assert receipt[receipt.index("what ") :] in text
    assert "outlay run " not in text, "a run from Python has no command"
    assert "licence not stated" in text
    assert f"{scores['micro_f1/published']['value']:.1f}" in text


@pytest.mark.parametrize("n_labels", [2, 5])
def test_scores_by_label_are_those_of_scikit_learn(n_labels: int) -> None:
    labels = [f"l{i}" for i in range(n_labels)]
    golds = [labels[(7 * i) % (n_labels - 1)] for i in range(50)]
    answers = [labels[(3 * i * i + i) % n_labels] if i % 3 else golds[i] for i in range(50)]
    found = label_scores("accuracy", Answered(answers, golds, labels))
    by_hand = precision_recall_fscore_support(golds, answers, labels=labels, zero_division=0)
    for i, each in enumerate(found):
        wanted = [100 * share[i] for share in by_hand[:3]]
        assert [each.precision, each.recall, each.f1] == pytest.approx(wanted)
        assert each.n == by_hand[3][i]
    assert found[-1].n == 0, "a label that no row has"


# --- which one, and that it stays ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("small"), n_pool=20)


def compared(world: World, out: Path, *, n_seeds: int = 2, **more: Any) -> outlay.StudyResult:
    return outlay.compare(
        world.task,
        [10, 12],
        out=out,
        strategies=["annotate", "self_distill"],
        n_initial=20,
        seeds=n_seeds,
        models=outlay.Models(teacher=world.checkpoint, student="cut:2"),
        options=outlay.RunOptions(threads=1, settings=FAST, **more),
        setup=outlay.Setup(store=out.parent / "store"),
    )


def test_a_comparison_hands_over_the_best_by_dev_at_the_largest_budget(small: World, tmp_path: Path) -> None:
    found = compared(small, tmp_path / "out")
    by_row: dict[str, list[Any]] = {}
    for each in found.runs:
        if each.point.request.budget_usd == 12:
            by_row.setdefault(each.point.request.strategy, []).append(each)
    means = {name: sum(each.point.result.dev for each in seeds) / len(seeds) for name, seeds in by_row.items()}
    best = max(means.values())
    wins = [name for name, mean in means.items() if mean == best]
    own = json.loads((found.model_path / "outlay.json").read_text())["handed_over"]
    first = {name: next(each for each in seeds if each.point.request.seed == 0) for name, seeds in by_row.items()}
    assert own["run"] in {first[name].run_id for name in wins}
    others = [each for each in found.runs if each.run_id != own["run"]]
    assert all(each.is_ok for each in others)
    with pytest.raises(MissingData, match="handed over no model"):
        _ = others[0].model_path


def test_without_dev_scores_nothing_is_chosen_by_the_test_split(small: World, tmp_path: Path) -> None:
    found = compared(small, tmp_path / "out", n_seeds=1, dev="none")
    assert any(each.is_ok for each in found.runs)
    with pytest.raises(MissingData, match="no model was handed over"):
        _ = found.model_path


def test_the_model_outlives_the_store_and_is_not_written_twice(small: World, tmp_path: Path) -> None:
    def once() -> outlay.RunResult:
        return outlay.run(
            small.task,
            10,
            out=tmp_path / "out",
            strategy="annotate",
            models=outlay.Models(teacher=small.checkpoint, student="cut:2"),
            options=outlay.RunOptions(threads=1, rivals=False, settings=FAST),
            setup=outlay.Setup(store=tmp_path / "store"),
        )

    model = once().model_path
    written = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    again = once().model_path
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == written
    Store(tmp_path / "store").gc(lambda _: False, older_than_seconds=0.0)
    assert not list((tmp_path / "store" / "objects").glob("*/*"))
    assert outlay.load_model(tmp_path / "out").predict(["a refund please"])[0] in outlay.load_task(small.task).labels


def test_a_folder_of_something_else_is_refused_before_anything_is_bought(small: World, tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="model is handed over, and holds something else"):
        compared(small, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model"]
