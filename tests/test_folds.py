"""Cross-validation for few labels: every seed keeps another fold of the owned labels for dev, and learns none of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import outlay
from outlay.engine.prepare import PreparedRun, RunBuilder
from outlay.errors import TaskFileError, UsageError
from outlay.export.model_dir import handed_over
from outlay.money.amounts import PriceBook
from outlay.plan.steps import OWNED, Distil, Train
from outlay.plan.strategies import strategy
from outlay.storage.store import Store
from outlay.tasks.folds import Folds, fold_numbers
from outlay.tasks.loading import load_data
from outlay.tasks.task import load_task
from tests.runs import World, runner
from tests.test_cli import outlay as command

K, N_SOLD = 5, 20
PROBE = {
    role: {"method": "probe", "precision": "fp32", "probe_strengths": 1} for role in ("teacher", "student", "distil")
}


class FoldedWorld(World):
    """The task with folds: all rows are owned but for the last `N_SOLD` of `some`; three rows are of one author."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
        for row in rows[:3]:
            row["author"] = "one"
        for name, part in (("mine", rows[:-N_SOLD]), ("sold", rows[-N_SOLD:]), ("all", rows)):
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        plain = self.task.read_text().replace("dev: given", "dev: folds")
        plain = plain.replace("  dev: {file: dev.jsonl, target: label}\n", "")
        owned = "train: {{file: {}.jsonl, target: label, owned: true, group: author}}"
        bought = "train: {file: train.jsonl, target: label}"
        self.task = root / "folds.yaml"
        self.task.write_text(plain.replace(bought, owned.format("all")))
        self.some = root / "some.yaml"
        sold = "\n  more_train: [{file: sold.jsonl, target: label}]"
        self.some.write_text(plain.replace(bought, owned.format("mine") + sold))

    def seed(self, seed: int, **changes: object) -> PreparedRun:
        asked = {"strategy": "annotate", "n_initial": None, "overrides": PROBE, "student": str(self.checkpoint)}
        return self.prepared(seed=seed, **{**asked, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FoldedWorld:
    return FoldedWorld(tmp_path_factory.mktemp("folds"))


def training(prepared: PreparedRun) -> Train:
    (step,) = [
        step
        for step in strategy(prepared.request.strategy).ask(prepared.context, []).steps()  # type: ignore[union-attr]
        if isinstance(step, Train)
    ]
    return step


def dev_and_train(prepared: PreparedRun) -> tuple[list[str], list[str]]:
    """The ids of the rows that a run keeps for dev, and of those that it trains on."""
    step = training(prepared)
    assert step.dev is not None
    ids = [row.id for buy in step.labels for row in prepared.train[buy.start : buy.stop]]
    return ids[: step.dev.n], ids[step.dev.n :]


# --- which rows ------------------------------------------------------------------------------------------------------


def test_folds_are_disjoint_cover_every_owned_label_and_have_its_classes(world: FoldedWorld) -> None:
    data = load_data(load_task(world.task))
    parts = [dev_and_train(world.seed(seed)) for seed in range(K)]
    devs = [set(dev) for dev, _ in parts]
    assert sum(map(len, devs)) == len(set().union(*devs)) == len(data.train) == 120
    assert set().union(*devs) == {row.id for row in data.train}
    assert all(
        set(learnt) == {row.id for row in data.train} - dev for (_, learnt), dev in zip(parts, devs, strict=True)
    )
    label_of = {row.id: row.label for row in data.train}
    for label, n in Counter(label_of.values()).items():
        counts = [sum(label_of[name] == label for name in dev) for dev in devs]
        assert max(counts) - min(counts) <= 2, (label, n, counts)
    one = {row.id for row in data.train if row.group == "one"}
    assert len(one) == 3
    assert sum(bool(one & dev) for dev in devs) == 1, "the rows of one author are in one fold"


def test_a_seed_beyond_the_folds_has_the_fold_of_an_earlier_one_in_another_order(world: FoldedWorld) -> None:
    (dev, learnt), (again, learnt_again) = (dev_and_train(world.seed(seed)) for seed in (2, 2 + K))
    assert set(dev) == set(again)
    assert learnt != learnt_again


def test_bought_labels_are_all_trained_on(world: FoldedWorld) -> None:
    sold = {row.id for row in load_data(load_task(world.some)).train[-N_SOLD:]}
    devs = []
    for seed in range(K):
        prepared = world.seed(seed, task=str(world.some))
        step = training(prepared)
        assert [(buy.seller, buy.n) for buy in step.labels] == [(OWNED, 100), ("human", N_SOLD)]
        dev, learnt = dev_and_train(prepared)
        assert sold < set(learnt)
        devs.append(dev)
    assert Counter(map(len, devs)) == Counter({20: K})


def test_fewer_labels_than_owned_keep_a_folds_share_of_them(world: FoldedWorld) -> None:
    folds = Folds.of(load_task(world.task), load_data(load_task(world.task)))
    assert [folds.n_dev(0, n) for n in (0, 1, 2, 30, 119, 120, 500)] == [0, 0, 1, 6, 24, 24, 24]


@given(
    rows=st.lists(st.tuples(st.sampled_from("aab"), st.integers(0, 30)), min_size=10, max_size=60),
    n=st.integers(2, 5),
    seed=st.none() | st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_every_row_has_a_fold_and_every_group_one(rows: list[tuple[str, int]], n: int, seed: int | None) -> None:
    labels, groups = [label for label, _ in rows], [group for _, group in rows]
    n = min(n, len(set(groups)))
    if n < 2:
        return
    numbers = fold_numbers(labels, groups, n, seed=seed)
    assert len(numbers) == len(rows)
    assert set(numbers) <= set(range(n))
    assert len(set(zip(groups, numbers, strict=True))) == len(set(groups))
    assert numbers == fold_numbers(labels, groups, n, seed=seed)


def test_folds_do_not_depend_on_the_order_of_the_files(world: FoldedWorld) -> None:
    task = load_task(world.task)
    data = load_data(task)
    assert Folds.of(task, data) == Folds.of(task, replace(data, train=data.train[::-1]))


# --- what runs make of them ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(world: FoldedWorld, tmp_path_factory: pytest.TempPathFactory) -> outlay.StudyResult:
    """A probe on the labels, once for each fold."""
    out = tmp_path_factory.mktemp("compared")
    return outlay.compare(
        world.task,
        [5],
        out=out / "out",
        strategies=["annotate"],
        seeds=K,
        models=outlay.Models(teacher=world.checkpoint, student="teacher"),
        options=outlay.RunOptions(threads=1, settings=PROBE, rivals=False),
        setup=outlay.Setup(store=out / "store"),
    ).raise_for_status()


def test_the_mean_dev_score_is_what_scikit_learn_cross_validates(
    world: FoldedWorld, compared: outlay.StudyResult
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    data = load_data(load_task(world.task))
    vectors, labels = (
        mean_vectors(world.checkpoint, [row.text for row in data.train]),
        [row.label for row in data.train],
    )
    fold_of = {name: seed for seed in range(K) for name in dev_and_train(world.seed(seed))[0]}
    number = np.array([fold_of[row.id] for row in data.train])
    model = LogisticRegression(C=1.0, max_iter=1000)
    answers = cross_val_predict(model, vectors, labels, cv=PredefinedSplit(number))
    right = answers == np.array(labels)
    for seed, each in enumerate(compared):
        assert each.point.request.seed == seed
        assert each.point.result.n_dev == (number == seed).sum()
        assert each.point.result.dev == pytest.approx(100 * right[number == seed].mean())
    weights = [each.point.result.n_dev for each in compared]
    assert np.average([each.point.result.dev for each in compared], weights=weights) == pytest.approx(
        100 * right.mean()
    )


def mean_vectors(checkpoint: Path, texts: list[str]) -> np.ndarray:
    """The mean of each text's token vectors, by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    rows = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.inference_mode():
        states, mask = model(**rows).last_hidden_state, rows["attention_mask"][..., None]
    return np.asarray((states * mask).sum(1) / mask.sum(1), dtype=np.float64)


def test_a_run_says_on_how_many_rows_it_learned_and_the_report_that_it_is_cross_validated(
    compared: outlay.StudyResult,
) -> None:
    store = Store(compared.folder.parent / "store")
    for each in compared:
        (key,) = [
            made["key"]
            for made in json.loads((compared.folder / "runs" / each.run_id / "manifest.json").read_text())["artifacts"]
            if made["step"] == "train"
        ]
        artifact = store.get(key)
        assert artifact is not None
        assert artifact.usage["n_rows"] + artifact.usage["n_dev"] == 120 == each.point.result.n_labels
        assert f"dev labels: {each.point.result.n_dev} of the seed's fold" in each.receipt
    identity = handed_over(compared.folder / "model")
    assert identity is not None
    assert identity["why"].endswith("cross-validated over 5 seeds")


def test_texts_of_the_fold_are_not_distilled_over(world: FoldedWorld, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.seed(1, strategy="distill")
    point = one.execute(prepared)
    assert point.is_ok, point.result.reason
    recipe = strategy("distill").ask(prepared.context, [])
    (student,) = [step for step in recipe.steps() if isinstance(step, Distil)]  # type: ignore[union-attr]
    assert student.dev == training(prepared).dev
    artifact = one.store.get(student.key)
    assert artifact is not None
    assert (artifact.usage["n_dev"], artifact.usage["n_rows"]) == (point.result.n_dev, 270 - point.result.n_dev)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (", owned: true, group: author", "", "`dev: folds` shares out labels that are owned"),
        ("dev: folds", "dev: carved\nfolds: 3", "`folds` belongs to `dev: folds`"),
        ("test: {", "test: {group: author, ", "`group` is about train rows"),
        ("dev: folds", "dev: folds\nfolds: 1", "greater than 1"),
        ("file: pool.jsonl", "file: pool.jsonl, group: author", "a pool is not shared out"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(world: FoldedWorld, old: str, new: str, says: str) -> None:
    path = world.task.with_name("wrong.yaml")
    path.write_text(world.task.read_text().replace(old, new))
    with pytest.raises(TaskFileError, match=says):
        load_task(path)


def test_folds_asked_of_a_run_need_owned_labels_enough_of_them_and_no_number(world: FoldedWorld) -> None:
    bought = world.task.with_name("task.yaml")
    with pytest.raises(UsageError, match="owned, and task small has none"):
        world.workbench.prepare(world.request(task=str(bought), dev="folds"))
    with pytest.raises(UsageError, match="a fold is the dev set"):
        world.seed(0, n_dev=10)
    many = world.task.with_name("many.yaml")
    many.write_text(world.task.read_text().replace("dev: folds", "dev: folds\nfolds: 119"))
    with pytest.raises(UsageError, match="120 owned labels in 118 groups, fewer than its 119 folds"):
        RunBuilder(PriceBook.load()).prepare(world.request(task=str(many)))
    checked = command("task", "check", many)
    assert checked.code != 0
    assert "fewer than its 119 folds" in checked.err


def test_the_folds_stand_in_the_profile(world: FoldedWorld) -> None:
    checked = command("task", "check", world.task)
    assert "dev folds (5 of 24 to 24 rows)" in checked.out, checked.err
