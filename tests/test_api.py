"""`import outlay`: what it loads, what it offers, and that it does what the command line does."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

import outlay
from outlay.engine.point import Reading
from outlay.errors import MissingData, MoneyError, RunFailed, UnknownStudy, UnknownTask
from outlay.money.amounts import parse_budget
from outlay.money.ledger import Ledger
from outlay.settings import TrainSettings, setting_fields
from outlay.study.index import StudyIndex
from tests.runs import FAST, World
from tests.steps_world import StepsWorld, tree
from tests.test_architecture import HEAVY
from tests.test_cli import outlay as command

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("steps"))


# --- the names -------------------------------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.split())


def test_the_import_loads_nothing() -> None:
    loaded = modules_after("import outlay")
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
    assert {name for name in loaded if name.split(".")[0] == "outlay"} == {"outlay"}


@pytest.mark.parametrize("name", ["Ledger", "OutlayError", "errors", "Data", "SellerSpec"])
def test_a_name_loads_what_it_needs(name: str) -> None:
    assert not {each.split(".")[0] for each in modules_after(f"import outlay; outlay.{name}")} & {
        "torch",
        "transformers",
        "altair",
    }


def test_every_public_name_is_there() -> None:
    assert set(outlay.__all__) <= set(dir(outlay))
    for name in outlay.__all__:
        assert getattr(outlay, name) is getattr(outlay, name)
        assert name in ("errors",) or getattr(outlay, name).__doc__ or name == "study"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = outlay.nothing_of_the_kind  # type: ignore[attr-defined]
    assert outlay.Ledger is Ledger


def test_no_public_function_takes_more_than_ten_parameters() -> None:
    functions = [name for name in outlay.__all__ if name[0].islower() and name != "errors"]
    assert len(functions) == 13
    for name in functions:
        assert len(inspect.signature(getattr(outlay, name)).parameters) <= 10, name


@pytest.mark.parametrize(
    "before", ["", "from outlay.study.grid import Grid", "import outlay.study.grid as g; g.Grid", "import outlay.study"]
)
def test_a_study_is_a_function_and_a_package(before: str) -> None:
    code = f"""
import outlay
{before}
for call in (outlay.study, __import__("outlay").study):
    try:
        call("no-such-study", out="nowhere")
    except outlay.errors.UnknownStudy:
        print("refused")
from outlay import study
from outlay.study.grid import load_study
assert study is outlay.study and outlay.study.grid.load_study is load_study
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["refused", "refused"], ran.stderr


SCRIPT = """
from decimal import Decimal
from pathlib import Path

import outlay
from outlay import Data, Ledger, Models, RunOptions, errors, study

models = Models(teacher=Path("encoder"), student="cut:2")
result = outlay.run("task.yaml", budget="20", out=Path("runs"), models=models, options=RunOptions(threads=1))
charge: Decimal = result.charge
value: float = 0.0 if result.score is None else result.score.value
model: Path = result.model
runs: list[str | None] = [each.reason for each in outlay.compare("task.yaml", [Decimal(3), 4], out="runs")]
table: str = study("table2", out="runs").table
verified: bool = Ledger("runs/ledger.sqlite").verify().ok
dev: float | None = outlay.finetune("encoder", Data(file="rows.jsonl"), out="model").dev
try:
    outlay.predict("model", Data(), out="said.jsonl").answers()
except (outlay.OutlayError, errors.UsageError):
    pass

outlay.run("task.yaml", bugdet=20, out="runs")  # wrong: call-arg
outlay.nothing_of_the_kind  # wrong: attr-defined
charge = outlay.evaluate("model", Data()).score  # wrong: assignment
study(3, out="runs")  # wrong: arg-type
"""


def test_mypy_sees_the_public_names(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    package = Path(outlay.__file__).parent
    # Only what the types of the front door are made of is read: the rest of the package, and its libraries, take long.
    rooms = [
        "__init__",
        "api",
        "api_steps",
        "errors",
        "money/ledger/__init__",
        "money/ledger/ledger",
        "money/ledger/audit",
    ]
    rooms += [
        "metrics/__init__",
        "metrics/intervals",
        "engine/point",
        "standalone/request",
        "standalone/results",
        "study/request",
        "study/results",
        "study/progress",
    ]
    files = [str(package / f"{name}.py") for name in rooms]
    options = ["--strict", "--follow-imports=skip", "--allow-subclassing-any", "--no-warn-return-any"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", f"--cache-dir={tmp_path}", *files, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"MYPYPATH": str(package.parent), "PATH": ""},
    )
    found = {
        int(line.split(":")[1]): line.rsplit("[", 1)[-1].rstrip("]\n")
        for line in ran.stdout.splitlines()
        if line.startswith(str(script)) and ": error:" in line
    }
    wanted = {
        number: line.split("# wrong: ")[1]
        for number, line in enumerate(SCRIPT.splitlines(), start=1)
        if "# wrong: " in line
    }
    assert found == wanted, ran.stdout + ran.stderr


# --- runs ------------------------------------------------------------------------------------------------------------


def models(world: World) -> outlay.Models:
    return outlay.Models(teacher=world.checkpoint, student="cut:2")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> outlay.Setup:
    return outlay.Setup(store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def ran(world: World, setup: outlay.Setup, tmp_path_factory: pytest.TempPathFactory) -> outlay.RunResult:
    out = tmp_path_factory.mktemp("runs") / "one"
    options = outlay.RunOptions(settings=FAST, threads=1, rivals=False)
    return outlay.run(world.task, 20, n_initial=60, models=models(world), options=options, setup=setup, out=out)


def test_a_run_is_that_of_the_command_line(world: World, ran: outlay.RunResult) -> None:
    assert ran.run_id == world.workbench.resolve(world.request()).run_id
    assert (ran.status, ran.reason, ran.is_ok) == ("ok", None, True)
    assert ran.raise_for_status() is ran
    assert isinstance(ran.score, Reading)
    assert ran.score.low <= ran.score.value == ran.point.result.test <= ran.score.high
    assert ran.score == ran.scores["accuracy/published"]


def test_a_run_says_what_it_cost(ran: outlay.RunResult) -> None:
    ledger = outlay.Ledger(ran.folder / "ledger.sqlite")
    assert ran.run_id is not None
    balance = ledger.balance(ran.run_id)
    assert ran.charge == Decimal(balance.total_charge_micros) / 1_000_000
    assert Decimal(12) <= ran.charge <= Decimal(20)
    assert ran.cash == Decimal(balance.total_cash_micros) / 1_000_000
    assert ran.run_id in ran.receipt
    assert ledger.verify().ok


def test_a_run_leaves_a_model(world: World, ran: outlay.RunResult, tmp_path: Path) -> None:
    scores = outlay.evaluate(ran.model, outlay.Data(task=world.task), out=tmp_path / "scores")
    assert ran.score is not None
    assert scores.score.value == pytest.approx(ran.score.value)


def test_the_same_call_replays_its_receipt(world: World, setup: outlay.Setup, ran: outlay.RunResult) -> None:
    before = len(Ledger(ran.folder / "ledger.sqlite").entries())
    reports: list[outlay.Progress] = []
    again = outlay.run(
        str(world.task),
        "$20.00",
        out=str(ran.folder),
        n_initial=60,
        models=models(world),
        options=outlay.RunOptions(settings=FAST, threads=1, rivals=False),
        setup=setup,
        progress=reports.append,
    )
    assert again.point == ran.point
    assert again.receipt == ran.receipt
    assert len(Ledger(ran.folder / "ledger.sqlite").entries()) == before
    assert not [each for each in reports if each.n_total]


def test_nothing_is_printed_and_progress_is_told(
    world: World, setup: outlay.Setup, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[outlay.Progress] = []
    options = outlay.RunOptions(settings=FAST, threads=1, rivals=False)
    outlay.run(
        world.task,
        20,
        strategy="annotate",
        models=models(world),
        options=options,
        setup=setup,
        out=tmp_path / "told",
        progress=reports.append,
    )
    assert capfd.readouterr() == ("", "")
    assert any("train" in each.what for each in reports)
    assert (reports[-1].n_done, reports[-1].n_total) == (1, 1)
    assert "1 of 1" in str(reports[-1])


def test_what_is_wrong_is_refused_before_a_folder_is_made(world: World, setup: outlay.Setup, tmp_path: Path) -> None:
    out = tmp_path / "never"
    with pytest.raises(UnknownTask, match="no-such-task"):
        outlay.run("no-such-task", 20, setup=setup, out=out)
    with pytest.raises(MoneyError, match="buys nothing"):
        outlay.run(world.task, 0, models=models(world), setup=setup, out=out)
    with pytest.raises(outlay.errors.UsageError, match="2 teachers"):
        outlay.run(world.task, 20, models=outlay.Models(teacher=["a", "b"]), setup=setup, out=out)
    options = outlay.RunOptions(settings={"teacher": {"epochs": 0}})
    with pytest.raises(outlay.errors.UsageError, match="epochs"):
        outlay.run(world.task, 20, models=models(world), options=options, setup=setup, out=out)
    with pytest.raises(outlay.errors.UsageError, match="workers is 0"):
        outlay.Setup(workers=0)
    for axes in ({"budgets": []}, {"strategies": []}, {"seeds": 0}, {"seeds": [1, 1]}):
        asked = {"budgets": [20], **axes}
        with pytest.raises(outlay.errors.UsageError, match=next(iter(axes))):
            outlay.compare(world.task, models=models(world), setup=setup, out=out, **asked)  # type: ignore[arg-type]
    with pytest.raises(UnknownStudy):
        outlay.study("no-such-study", out=out)
    assert not out.exists()


def test_a_launch_of_several_processes_spends_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(outlay.errors.UsageError, match="2 processes"):
        outlay.run(world.task, 20, models=models(world), out=tmp_path / "never")


def test_a_run_without_a_score_says_why(world: World, setup: outlay.Setup, tmp_path: Path) -> None:
    # 60 labels cost $12.
    result = outlay.run(
        world.task,
        "1.00",
        n_initial=60,
        models=models(world),
        options=outlay.RunOptions(settings=FAST, threads=1, rivals=False),
        setup=setup,
        out=tmp_path / "poor",
    )
    assert (result.status, result.score, result.charge) == ("na", None, 0)
    with pytest.raises(RunFailed, match=re.escape(result.reason or "no reason")):
        result.raise_for_status()
    with pytest.raises(MissingData):
        _ = result.model


def test_another_request_does_not_replace_a_report(world: World, setup: outlay.Setup, ran: outlay.RunResult) -> None:
    options = outlay.RunOptions(settings=FAST, threads=1, rivals=False)
    with pytest.raises(outlay.errors.UsageError, match="another request"):
        outlay.run(world.task, 20, seed=3, models=models(world), options=options, setup=setup, out=ran.folder)


# --- comparisons and studies -----------------------------------------------------------------------------------------


def test_a_comparison(world: World, setup: outlay.Setup, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    results = outlay.compare(
        world.task,
        [15, "20"],
        strategies=["annotate", "distill"],
        n_initial=60,
        seeds=[4],
        models=models(world),
        options=outlay.RunOptions(settings=FAST, threads=1, rivals=False, with_rule=False),
        setup=setup,
        out=out,
    )
    asked = [(each.point.request.strategy, each.point.request.budget_usd, each.point.request.seed) for each in results]
    assert asked == [(name, usd, 4) for usd in (15.0, 20.0) for name in ("annotate", "distill")]
    assert len(results) == 4
    assert results.raise_for_status() is results
    assert all(each.charge <= each.point.request.budget_usd for each in results)
    options = world.request(seed=4, strategy="annotate", budget_micros=parse_budget(15))
    assert results.runs[0].run_id == world.workbench.resolve(options).run_id
    assert "annotate" in results.table
    files = results.write_report()
    assert files["table"].read_text(encoding="utf-8") == results.table
    assert files["page"].is_file()


STUDY = """
name: pools
rivals: false
strategies: [distill]
scales:
  cpu:
    models: {{teacher: {checkpoint}, student: cut:1}}
    threads: 1
    settings:
      teacher: &fast {{epochs: 1, batch_size: 16, learning_rate: 0.001, precision: fp32}}
      distil: *fast
    n_initial: 20
    added_usd: 2
    pool_rows: [40, 100000]
    tasks: {{task.yaml: {{}}}}
"""


def test_a_study(world: World, setup: outlay.Setup, tmp_path: Path) -> None:
    file, out = world.task.parent / "study.yaml", tmp_path / "pools"
    file.write_text(STUDY.format(checkpoint=world.checkpoint))
    done = outlay.study(file, setup=setup, out=out)
    assert [each.status for each in done] == ["ok", "na"]
    assert "100,000" in (done.runs[1].reason or "")
    assert done.runs[1].receipt == ""
    assert done.raise_for_status() is done
    header = StudyIndex.read(out).header
    assert (header.name, header.scale) == ("pools", "cpu")
    assert header.command == f"outlay study run {file} --scale cpu"
    before = (out / "points.json").read_bytes()
    shown = command("study", "run", str(file), "--store", str(setup.store), "--out", str(out), "--json")
    assert shown.json == json.loads(before), "the command line replays what Python did"


def test_nothing_that_can_be_filled_is_refused(world: World, setup: outlay.Setup, tmp_path: Path) -> None:
    file = world.task.parent / "none.yaml"
    file.write_text(STUDY.format(checkpoint=world.checkpoint).replace("[40, 100000]", "100000"))
    with pytest.raises(outlay.errors.UsageError, match="none of the 1 points"):
        outlay.study(file, setup=setup, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


# --- single steps ----------------------------------------------------------------------------------------------------

QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32"}
ONE = outlay.RuntimeOptions(threads=1)


def data(steps: StepsWorld, split: str = "train", **more: object) -> outlay.Data:
    return outlay.Data(file=steps.file("classification", split), **more)  # type: ignore[arg-type]


def test_the_steps_one_after_another(steps: StepsWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train = data(
        steps,
        labels=("bad", "good"),
        dev_file=steps.file("classification", "dev"),
        max_source_tokens=24,
        max_target_tokens=12,
    )
    teacher = outlay.finetune(steps.model("bert"), train, out=tmp_path / "teacher", settings=QUICK, runtime=ONE)
    assert (teacher.n_rows, teacher.n_dev, teacher.dev_score, teacher.was_done) == (37, 13, "accuracy/published", False)
    assert teacher.dev is not None
    targets = outlay.teach(
        teacher.path,
        data(steps, "pool"),
        student=steps.model("small"),
        out=tmp_path / "targets",
        precision="fp32",
        settings={"batch_size": 16},
        runtime=ONE,
    )
    assert (targets.kind, targets.n_rows) == ("classes", 29)
    student = outlay.distill(
        targets.path,
        steps.model("small"),
        out=tmp_path / "student",
        settings={**QUICK, "temperature": 2.0},
        runtime=ONE,
    )
    assert (student.dev, student.dev_score, student.n_rows) == (None, None, 29)
    dev = data(steps, "dev")
    scores = outlay.evaluate(student.path, dev, precision="fp32", runtime=ONE)
    assert scores.path == student.path / "evaluation" / "classification-dev"
    said = outlay.predict(student.path, dev, out=tmp_path / "said.jsonl", precision="fp32", runtime=ONE)
    golds = [json.loads(line)["target"] for line in steps.file("classification", "dev").read_text().splitlines()]
    right = sum(answer == gold for answer, gold in zip(said.answers(), golds, strict=True))
    assert scores.score.value == pytest.approx(100 * right / 13)
    assert scores.scores[scores.main] == scores.score
    of_file = outlay.evaluate(said.path, outlay.Data(labels=("bad", "good")))
    assert of_file.path == tmp_path / "said.jsonl.evaluation"
    assert of_file.score.value == scores.score.value
    assert capfd.readouterr() == ("", "")


def test_the_command_line_finds_the_step_done(steps: StepsWorld, tmp_path: Path) -> None:
    file, model, out = steps.file("classification", "train"), steps.model("bert"), tmp_path / "model"
    settings = {"epochs": 1, "precision": "fp32"}
    made = outlay.finetune(
        model, outlay.Data(file=file, labels=["bad", "good"]), out=out, settings=settings, runtime=ONE
    )
    before = tree(out)
    words = (
        "--model",
        model,
        "--train-file",
        str(file),
        "--labels",
        "bad,good",
        "--epochs",
        "1",
        "--precision",
        "fp32",
    )
    shown = command("finetune", *words, "--threads", "1", "--out", str(out), "--json")
    assert shown.json == {**made.report.to_json(), "is_old": True}
    assert tree(out) == before


def test_a_step_tells_its_progress_and_goes_on_where_it_was_stopped(steps: StepsWorld, tmp_path: Path) -> None:
    asked = {"settings": QUICK, "runtime": outlay.RuntimeOptions(threads=1, save_steps=1, save_seconds=0)}
    train = data(steps, labels=("bad", "good"))

    class Stopped(Exception):
        pass

    def stop(progress: outlay.Progress) -> None:
        if progress.n_done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        outlay.finetune(steps.model("bert"), train, out=tmp_path / "cut", progress=stop, **asked)  # type: ignore[arg-type]
    reports: list[outlay.Progress] = []
    outlay.finetune(steps.model("bert"), train, out=tmp_path / "cut", progress=reports.append, **asked)  # type: ignore[arg-type]
    assert min(each.n_done for each in reports if each.n_total) > 1, "it went on from a checkpoint"
    outlay.finetune(steps.model("bert"), train, out=tmp_path / "whole", **asked)  # type: ignore[arg-type]
    cut, whole = tree(tmp_path / "cut"), tree(tmp_path / "whole")
    assert cut["model.safetensors"] == whole["model.safetensors"]


def test_a_step_refuses_what_it_does_not_take(steps: StepsWorld, tmp_path: Path) -> None:
    out = tmp_path / "never"
    for call, given, name in (
        (lambda d: outlay.finetune(steps.model("bert"), d, out=out), {"split": "train"}, "split"),
        (lambda d: outlay.teach(steps.model("bert"), d, out=out), {"dev_file": "dev.jsonl"}, "dev_file"),
        (lambda d: outlay.distill("targets", "cut:2", d, out=out), {"labels": ["a", "b"]}, "labels"),
        (lambda d: outlay.predict(steps.model("bert"), d, out=out), {"prefix": "x: "}, "prefix"),
        (lambda d: outlay.evaluate(steps.model("bert"), d, out=out), {"max_train_rows": 3}, "max_train_rows"),
        (lambda d: outlay.evaluate(steps.file("entities", "dev"), d, out=out), {"max_rows": 3}, "max_rows"),
    ):
        with pytest.raises(outlay.errors.UsageError, match=f"takes no {name}"):
            call(outlay.Data(**given))  # type: ignore[arg-type, no-untyped-call]
    with pytest.raises(outlay.errors.UsageError, match="'judge'"):
        outlay.finetune(steps.model("bert"), data(steps), out=out, role="judge")  # type: ignore[arg-type]
    with pytest.raises(outlay.errors.UsageError, match="unknown teaching setting 'epochs'"):
        outlay.teach(steps.model("bert"), data(steps), out=out, settings={"epochs": 3})
    assert not out.exists()


def test_every_setting_of_a_training_may_be_named(steps: StepsWorld, tmp_path: Path) -> None:
    """As the dataclass names it: a wrong name lists them all."""
    with pytest.raises(outlay.errors.UsageError) as refused:
        outlay.finetune(
            steps.model("bert"), data(steps, labels=("bad", "good")), out=tmp_path / "never", settings={"rate": 1e-3}
        )
    assert set(setting_fields(TrainSettings)) <= set(str(refused.value).replace(",", " ").split())


# --- the pages -------------------------------------------------------------------------------------------------------


def blocks(page: Path, kind: str) -> list[str]:
    """Fenced blocks of a page."""
    parts = page.read_text(encoding="utf-8").split("```")[1::2]
    return [part.removeprefix(kind + "\n") for part in parts if part.startswith(kind + "\n")]


@pytest.mark.parametrize(
    "page",
    # Every function once, with two threads: a minute on two cores that other tests want too.
    [ROOT / "README.md", pytest.param(ROOT / "docs" / "python.md", marks=pytest.mark.slow)],
    ids=lambda page: page.name,
)
def test_the_examples_run(page: Path, world: World, tmp_path: Path) -> None:
    examples = blocks(page, "python")
    assert examples
    shutil.copy(world.task, tmp_path / "task.yaml")
    for name, n in (("train.jsonl", 40), ("dev.jsonl", 12), ("test.jsonl", 12), ("pool.jsonl", 12)):
        lines = (world.task.parent / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:n]), encoding="utf-8")
    shutil.copytree(world.checkpoint, tmp_path / "encoder")
    if page.name == "python.md":
        (tmp_path / "study.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
        rows = map(json.loads, (world.task.parent / "train.jsonl").read_text(encoding="utf-8").splitlines())
        lines = [f"{row['message']};{row['label']}\n" for row in rows]
        (tmp_path / "tickets.csv").write_text("".join(["message;topic\n", *lines]), encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text("\n".join([*examples, "assert result.is_ok", "print('the end')"]), encoding="utf-8")
    # Steps of two threads: where other programs want the cores too, threads that spin while they wait take many times as long.
    environment = {**os.environ, "OUTLAY_STORE": str(tmp_path / "store"), "OMP_WAIT_POLICY": "PASSIVE"}
    # Whoever runs this may be logged in to a hub.
    environment["HF_HUB_OFFLINE"] = "1"
    ran = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("the end\n")


def test_the_page_has_an_example_of_each_function() -> None:
    code = "\n".join(blocks(ROOT / "docs" / "python.md", "python"))
    for name in outlay.__all__:
        assert name in ("errors", "MetricAsked") or name.endswith("Result") or f"outlay.{name}" in code, name
