"""Labels that one owns already: they cost nothing, come first, count as labels, and a budget buys on top of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import outlay
from outlay.errors import TaskFileError
from outlay.money.amounts import OWNED_LABEL, PriceBook
from outlay.plan.steps import HUMAN, OWNED, Train
from outlay.tasks.loading import load_data
from outlay.tasks.task import load_task
from tests.runs import FAST, World, bought_rows

N_OWNED = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def with_train(world: World, text: str) -> Path:
    """The task with other train rows, beside its own file."""
    path = world.task.with_name(f"task-{len(text)}-{abs(hash(text))}.yaml")
    path.write_text(world.task.read_text().replace("train: {file: train.jsonl, target: label}", text))
    return path


@pytest.fixture(scope="module")
def all_owned(world: World) -> Path:
    return with_train(world, "train: {file: train.jsonl, target: label, owned: true}")


@pytest.fixture(scope="module")
def some_owned(world: World) -> Path:
    """The last rows of the file are owned, and those before them for sale."""
    lines = (world.task.parent / "train.jsonl").read_text().splitlines(keepends=True)
    (world.task.parent / "sold.jsonl").write_text("".join(lines[:-N_OWNED]))
    (world.task.parent / "mine.jsonl").write_text("".join(lines[-N_OWNED:]))
    return with_train(
        world,
        "train: {file: sold.jsonl, target: label}\n  more_train: [{file: mine.jsonl, target: label, owned: true}]",
    )


def spent(task: Path, out: Path, budget: float, **more: object) -> outlay.RunResult:
    asked = {"strategy": "annotate", **more}
    return outlay.run(
        task,
        budget,
        out=out,
        models=outlay.Models(teacher=task.parent / "checkpoint", student="cut:2"),
        options=outlay.RunOptions(threads=1, settings=FAST),
        setup=outlay.Setup(store=out / "store"),
        **asked,  # type: ignore[arg-type]
    ).raise_for_status()


def test_owned_labels_are_all_used_and_cost_nothing(all_owned: Path, tmp_path: Path) -> None:
    result = spent(all_owned, tmp_path / "out", 5)
    assert result.point.result.n_labels == 120
    assert 0 < result.charge < 1
    assert re.search(
        r"120 owned train labels +label/owned +120 labels at \$0\.00 +\$0\.00 +\$0\.00 +\$5\.00", result.receipt
    )
    manifest = tmp_path / "out" / "runs" / str(result.run_id) / "manifest.json"
    told = json.loads(manifest.read_text())["derivation"]
    used, sellers = (line for line in told if line.startswith(("all 120 labels used", "sellers: ")))
    assert used == "all 120 labels used, $5.00 left: more labels would have to be bought"
    assert sellers == (
        "sellers: human at $0.20 a label, llm (strategies llm_annotate, mix); so far they replay gold labels, which 150 "
        "pool rows lack: label those and add them to `data.train`"
    )
    assert result.point.result.notes[-2:] == (used, sellers)
    assert f"note: {used}\n" in result.receipt
    # A rival buys nothing.
    assert not [note for each in result.rivals for note in each.point.result.notes if "labels used" in note]
    assert all(each.point.result.n_labels == 120 for each in result.rivals if each.is_ok)
    assert any(each.is_ok for each in result.rivals)


def test_a_budget_buys_on_top_of_them(some_owned: Path, tmp_path: Path) -> None:
    small = spent(some_owned, tmp_path / "small", 0.1)
    assert small.point.result.n_labels == N_OWNED
    large = spent(some_owned, tmp_path / "large", 4.1)
    n_bought = large.point.result.n_labels - N_OWNED
    assert n_bought == 20
    assert 4 <= large.charge <= 4.1
    assert f"{n_bought} train labels" in large.receipt
    assert f"{N_OWNED} owned train labels" in large.receipt


@pytest.mark.parametrize("seed", [0, 7])
def test_owned_rows_come_first_whatever_the_seed(world: World, some_owned: Path, seed: int) -> None:
    mine = {line["message"] for line in map(json.loads, (some_owned.parent / "mine.jsonl").read_text().splitlines())}
    prepared = world.workbench.prepare(world.request(task=str(some_owned), strategy="annotate", seed=seed))
    assert {row.text for row in prepared.train[:N_OWNED]} == mine
    assert prepared.context.n_owned == N_OWNED


def test_a_teacher_learns_from_owned_labels_first(world: World, some_owned: Path) -> None:
    from outlay.plan.strategies import strategy

    context = world.workbench.prepare(
        world.request(task=str(some_owned), n_initial=60, budget_micros=10_000_000)
    ).context
    recipe = strategy("distill").ask(context, [])
    teacher = next(step for step in recipe.steps() if isinstance(step, Train))  # type: ignore[union-attr]
    assert [(buy.seller, buy.start, buy.n) for buy in teacher.labels] == [(OWNED, 0, N_OWNED), (HUMAN, N_OWNED, 20)]


def test_the_label_of_an_owned_row_is_never_paid(some_owned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    spent(some_owned, out, 4.1)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(out / "store", elsewhere / "store")
    again = spent(some_owned, elsewhere, 4.1, strategy="distill", n_initial=50)
    rows = bought_rows(elsewhere / "store")
    assert len(rows) == len(set(rows))
    assert again.point.request.added_usd == pytest.approx(4.1 - 10 * 0.2)


def test_tasks_without_owned_labels_have_the_digest_they_had(world: World) -> None:
    plain = with_train(world, "train: {file: train.jsonl, target: label, owned: false}")
    ids = {world.workbench.resolve(world.request(task=str(task))).digests.task for task in (world.task, plain)}
    assert len(ids) == 1


def test_every_price_book_has_the_price_of_owned_labels() -> None:
    assert PriceBook.load().label("label/owned") is OWNED_LABEL


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "test: {file: test.jsonl, target: label}",
            "test: {file: test.jsonl, target: label, owned: true}",
            "`owned` is about train",
        ),
        ("train: {file: train.jsonl, target: label}", "train: {file: train.jsonl, owned: true}", "name it by `target`"),
    ],
)
def test_what_cannot_be_owned_is_refused(world: World, tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "task.yaml").write_text(world.task.read_text().replace(old, new))
    with pytest.raises(TaskFileError, match=says):
        load_task(tmp_path / "task.yaml")


def test_leaks_leave_the_owned_rows_that_are_left(world: World, all_owned: Path) -> None:
    data = load_data(load_task(all_owned))
    assert data.owned == {row.id for row in data.train}
