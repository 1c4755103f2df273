"""Texts that have no labels yet: the task file, `init`, and runs whose dev and test labels are bought like any others."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import outlay
from outlay.cli import init_command
from outlay.cli.app import app
from outlay.engine import sellers
from outlay.engine.prepare import RunBuilder
from outlay.errors import DataError, NoLabels, TaskFileError, UsageError
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Delivery, Order, RowResult, no_report
from outlay.labels.replay import Replay
from outlay.money.amounts import PriceBook
from outlay.plan.context import PlanningContext
from outlay.plan.request import SellerSpec
from outlay.plan.steps import HUMAN, LLM, Buy, Score, Train
from outlay.plan.strategies import strategy
from outlay.tasks.loading import load_data
from outlay.tasks.new_task import NewTask, NewTaskOptions, SplitOptions, new_task
from outlay.tasks.task import load_task
from outlay.tasks.task_files import write_task
from outlay.tasks.to_label import ToLabel, half_interval
from tests.annotators import rows_of, write_rows
from tests.checkpoints import make_checkpoint
from tests.runs import World, runner
from tests.test_cli import outlay as command

TOPICS = {"billing": "invoice", "delivery": "parcel", "login": "password"}
FILLERS = ("please", "today", "again", "about", "order", "still", "was", "not", "there", "help", "with", "this")
ASKED = ToLabel(labels=tuple(TOPICS), descriptions={"billing": "money: matters"}, usd_per_label="0.05")
BOUGHT = "dev: bought\ntest: bought\nsellers: {people: {kind: files}}\n"


def texts(n: int, seed: int = 0) -> list[str]:
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < n:
        words = [*rng.choices(FILLERS, k=rng.randint(4, 9)), rng.choice([*TOPICS.values()]), str(rng.randrange(10_000))]
        rng.shuffle(words)
        found[" ".join(words)] = None
    return list(found)


def topic_of(text: str) -> str:
    return next(topic for topic, word in TOPICS.items() if word in text.split())


def table(path: Path, n: int = 300, author: Callable[[int], str] = str) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["id", "message", "author"], *([i, t, author(i)] for i, t in enumerate(texts(n)))]
        )
    return path


def task_file(folder: Path, more: str, train: str = "file: train.jsonl", test: str = "file: test.jsonl") -> Path:
    path = folder / "task.yaml"
    path.write_text(
        f"""\
name: tickets
text: "{{message}}"
labels: [billing, delivery, login]
price_item: label/demo
{more}
data:
  train: {{{train}}}
  dev: {{file: dev.jsonl}}
  test: {{{test}}}
"""
    )
    return path


# --- the task file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("dev: given", ["`data.dev` needs `target`", "`dev: bought`"]),
        ("dev: bought", ["`data.dev` has no `target`", "people replay", "kind: files"]),
        ("dev: bought\nsellers: {people: {kind: files}}", ["`data.test` needs `target`", "`test: bought`"]),
        (BOUGHT + "eval_seller: peopel", ["'peopel'", "did you mean people?"]),
        (BOUGHT + "eval_seller: llm", ["'llm'", "the sellers are people"]),
        (BOUGHT.replace("files", "replay"), ["`data.dev` has no `target`"]),
        (BOUGHT.replace("files", "fils"), ["sellers.people.kind", "'fils'", "did you mean files?", "openai or replay"]),
        (BOUGHT.replace("kind: files", "redundancy: 2"), ["sellers.people.kind", "required"]),
        (BOUGHT.replace("files", "files, foldr: x"), ["sellers.people.foldr", "did you mean folder?"]),
        (BOUGHT.replace("files", "replay, redundancy: 2"), ["sellers.people.redundancy", "2 answers", "odd"]),
        (BOUGHT.replace("people", "human"), ["'human'", "called 'people'"]),
        (BOUGHT.replace("people", "owned"), ["'owned'", "`owned: true`"]),
        (BOUGHT.replace("people: {kind: files}", "llm: {kind: openai}"), ["sellers.llm.model", "required"]),
        (BOUGHT + "descriptions: {biling: x}", ["'biling'", "did you mean billing?"]),
    ],
)
def test_what_the_task_file_says_of_sellers_is_checked(tmp_path: Path, more: str, words: list[str]) -> None:
    with pytest.raises(TaskFileError) as error:
        load_task(task_file(tmp_path, more))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", ["api_key_env: 'sk-planted secret'", "base_url: 'https://me:planted@host/v1'", "base_url: planted"]
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_shown(tmp_path: Path, options: str) -> None:
    more = (
        f"{BOUGHT.replace('people: {kind: files}', 'llm: {kind: openai, model: m, ' + options + '}')}eval_seller: llm"
    )
    with pytest.raises(TaskFileError) as error:
        load_task(task_file(tmp_path, more))
    assert "planted" not in str(error.value)


def test_words_for_annotators_and_sellers_are_in_no_digest_and_bought_test_labels_are(world: World) -> None:
    def digest(*added: str) -> str:
        path = world.task.with_name("told.yaml")
        path.write_text("\n".join([world.task.read_text().replace("dev: given", "dev: bought"), *added]))
        asked = RunBuilder(PriceBook.load()).resolve(world.request(task=str(path)))
        assert asked.digests is not None
        return asked.digests.task

    plain, label = digest(), load_task(world.task).labels[0]
    told = ("instruction: Choose.", f"descriptions: {{{label}: words}}", "sellers: {people: {kind: files}}")
    assert digest(*told, "test: given", "eval_seller: people") == plain
    assert digest("test: bought") != plain


# --- init ---------------------------------------------------------------------------------------------------------------


def unlabelled(path: Path, **splits: Any) -> NewTask:
    return new_task([path], NewTaskOptions(splits=SplitOptions(**splits), to_label=ASKED))


def parts_of(new: NewTask) -> dict[str, set[str]]:
    return {name: {row.texts[0] for row in getattr(new, name)} for name in ("train", "dev", "test")}


def test_rows_without_labels_become_a_task_that_says_what_the_money_buys(tmp_path: Path) -> None:
    new = unlabelled(table(tmp_path / "tickets.csv", 2000))
    parts = parts_of(new)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 1600, "dev": 100, "test": 300}
    assert len(set.union(*parts.values())) == 2000
    said = "\n".join(new.decided)
    assert "test: 300 of 2,000 rows, seed 0, bought at $0.05 = $15.00, give ± 4.5 points at 80 %; --test says" in said
    assert "dev: 100 of 2,000 rows, seed 0, bought at $0.05 = $5.00, give ± 7.8 points at 80 %; --dev says" in said
    made = write_task(new, tmp_path / "task", usd_per_label="0.05")
    task, lines = load_task(made.task), "\n".join(made.statistics.lines())
    assert (task.dev, task.test, task.eval_seller, task.sellers["people"].kind) == (
        "bought",
        "bought",
        "people",
        "files",
    )
    assert (task.descriptions, bool(task.instruction)) == ({"billing": "money: matters"}, True)
    assert all(row.label is None for rows in dict(load_data(task).splits()).values() for row in rows)
    assert lines.count("to be bought") == 3
    assert "sold by people (by files) · those of dev and test by people" in lines
    assert "--budgets 50 --strategies annotate,distill" in made.next_command
    assert made.next_command.endswith("--dry-run")


@pytest.mark.parametrize(("n", "test", "dev", "sizes"), [(60, None, None, (12, 6)), (300, 40, 0, (40, 0))])
def test_sizes_of_what_is_bought(
    tmp_path: Path, n: int, test: int | None, dev: int | None, sizes: tuple[int, int]
) -> None:
    new = unlabelled(table(tmp_path / "rows.csv", n), test=test, dev=dev)
    assert (len(new.test), len(new.dev)) == sizes
    task = load_task(write_task(new, tmp_path / "task").task)
    assert task.dev == ("bought" if sizes[1] else "carved")


def test_half_an_interval_is_that_of_a_share() -> None:
    assert half_interval(300, 0.8) == pytest.approx(4.526, abs=0.001)
    assert half_interval(100) == pytest.approx(9.8)


def test_groups_and_seeds_hold_without_labels(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", 300, author=lambda i: f"author {i % 31}")
    authors = {row["message"]: row["author"] for row in rows_of(path)}
    one, again, other = (parts_of(unlabelled(path, group="author", seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one["test"] != other["test"]
    sides = [{authors[text] for text in rows} for rows in one.values()]
    assert all(not a & b for i, a in enumerate(sides) for b in sides[:i])
    assert min(map(len, sides)) > 0


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (None, NoLabels, "--labels"),
        (ToLabel(), UsageError, "name them with --labels"),
        (replace(ASKED, labels=("a", "a")), UsageError, "differ"),
        (replace(ASKED, descriptions={"bill": "x"}), UsageError, "'bill'"),
        (replace(ASKED, sellers=("peple",)), UsageError, "peple"),
        (replace(ASKED, sellers=("llm",), usd_per_label=None), UsageError, "--llm"),
        (replace(ASKED, sellers=("llm",), llm="m"), UsageError, "--label-price"),
        (replace(ASKED, llm="m"), UsageError, "--seller llm"),
        (replace(ASKED, sellers=("llm",), llm="m", usd_per_label=None, url="host"), UsageError, "http://"),
    ],
)
def test_what_is_not_said_of_labels_to_be_bought_is_asked(
    tmp_path: Path, asked: ToLabel | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        new_task([table(tmp_path / "rows.csv", 40)], NewTaskOptions(to_label=asked))


def test_too_few_texts_and_parts_that_leave_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 different texts are too few"):
        unlabelled(table(tmp_path / "few.csv", 12))
    with pytest.raises(UsageError, match="together below 40"):
        unlabelled(table(tmp_path / "rows.csv", 40), test=30, dev=10)
    with pytest.raises(UsageError, match="--label names"):
        new_task([tmp_path / "rows.csv"], NewTaskOptions(label="author", to_label=ASKED))


def test_a_terminal_is_asked_what_nobody_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inbox.txt").write_text("\n".join(texts(60)))
    monkeypatch.setattr(init_command, "is_terminal", lambda: True)
    typed = "spam, other\nadvertising\n\nSay what it is.\npeople\n0.10\nour agents\ny\n"
    asked = CliRunner().invoke(app, ["init", "inbox.txt"], input=typed)
    assert asked.exit_code == 0, asked.output
    task = load_task(Path("inbox/task.yaml"))
    assert (task.labels, task.descriptions) == (("spam", "other"), {"spam": "advertising"})
    assert task.instruction == "Say what it is."
    price = PriceBook.load([Path("inbox/prices.toml")]).label("label/inbox")
    assert (price.usd, price.source) == (Decimal("0.10"), "our agents")


def test_from_python_and_the_command_line_the_same_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(Path("rows.csv"), 60)
    options = ("--labels", "a,b", "--describe", "a=first", "--instruction", "Choose.", "--seller", "people,llm")
    ran = command("init", "rows.csv", "--yes", "--out", "typed", *options, "--llm", "m", "--label-price", "0.2")
    assert ran.code == 0, ran.err
    asked = ToLabel(
        labels=("a", "b"), descriptions={"a": "first"}, instruction="Choose.", sellers=("people", "llm"), llm="m"
    )
    made = outlay.init("rows.csv", out="called", to_label=asked, label_price=0.2)
    assert {path.name: path.read_bytes() for path in made.files} == {
        path.name: path.read_bytes() for path in Path("typed").iterdir()
    }
    assert made.strategies == ("annotate", "distill", "llm_annotate")


def test_an_llm_alone_is_asked_without_examples_and_is_free_where_told_so(tmp_path: Path) -> None:
    table(tmp_path / "rows.csv", 60)
    asked = ToLabel(labels=("a", "b"), sellers=("llm",), llm="m", url="http://localhost:1/v1")
    made = outlay.init(tmp_path / "rows.csv", out=tmp_path / "llm", to_label=asked, label_price=0)
    task = load_task(made.task)
    told = task.sellers["llm"].model_dump(exclude_defaults=True)
    assert told == {
        "kind": "openai",
        "model": "m",
        "base_url": "http://localhost:1/v1",
        "examples": "none",
        "price_item": "free",
    }
    assert (task.eval_seller, made.prices, made.strategies) == ("llm", None, ("llm_annotate",))
    assert any("agrees with m" in line for line in made.decided)


# --- plans and runs -----------------------------------------------------------------------------------------------------


class Teller(Replay):
    """A seller who tells what the hidden truth is, refuses some rows, and is paid for each; ``hidden``: text → label."""

    hidden: dict[str, str]
    refuses: Callable[[str], bool] = staticmethod(lambda text: False)

    @property
    def is_deterministic(self) -> bool:
        return False

    def submit(self, order: Order) -> None:
        self.seen = {example.id: example.text for example in order.examples}
        assert all(example.label is None for example in order.examples)
        self._sold[order.id] = (order, Delivery(order.id, tuple(map(self._result, self.seen))))

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        delivery = super().collect(order, allowance)
        return replace(delivery, cash_micros=self.price.cost_micros(delivery.quantity))

    def _result(self, row: str) -> RowResult:
        text = self.seen[row]
        if self.refuses(text):
            return RowResult(row, None, "nobody knows", Fraction(0))
        return RowResult(row, self.hidden[text])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def bought(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world's task without gold labels in its files; `Teller` knows others, so that none is what a file had."""
    folder = world.task.parent / "bought"
    folder.mkdir(exist_ok=True)
    task = load_task(world.task)
    turned = {label: task.labels[i - 1] for i, label in enumerate(task.labels)}
    hidden = {}
    for name in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (world.task.parent / f"{name}.jsonl").read_text().splitlines()]
        hidden |= {row["message"]: turned[row["label"]] for row in rows}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"message": row["message"]}) + "\n" for row in rows))
    (folder / "pool.jsonl").write_bytes((world.task.parent / "pool.jsonl").read_bytes())
    text = world.task.read_text().replace(", target: label", "").replace("dev: given", BOUGHT.strip())
    (folder / "task.yaml").write_text(text)
    monkeypatch.setattr(Teller, "hidden", hidden, raising=False)

    def teller(block: object, task: Any, book: PriceBook, *place: object) -> Teller:
        return Teller({"any": task.labels[0]}, labels=task.labels, price=book.label(task.price_item))

    monkeypatch.setattr(sellers, "files_seller", teller)
    again = world.fresh()
    again.task = folder / "task.yaml"
    return again


def context_of(world: World, **changes: object) -> PlanningContext:
    return world.prepared(strategy="annotate", n_initial=None, **changes).context


def score_of(context: PlanningContext) -> Score:
    recipe = strategy("annotate").ask(context, [])
    assert recipe is not None
    assert hasattr(recipe, "final"), recipe
    assert isinstance(recipe.final, Score)
    return recipe.final


def test_test_labels_are_one_purchase_for_every_seed_and_budget_and_count_in_each(bought: World) -> None:
    score = score_of(context_of(bought))
    labels = score.labels
    assert labels is not None
    assert (labels.split, labels.n, labels.seller) == ("test", 40, HUMAN)
    assert score.inputs == (score.model, labels)
    other = score_of(context_of(bought, seed=3, budget_micros=18_000_000))
    assert other.labels == labels
    assert isinstance(score.model, Train)
    assert isinstance(other.model, Train)
    assert (score.model.dev and score.model.dev.labels) == (other.model.dev and other.model.dev.labels)
    # Fewer test rows are the first of all, so that more of them cost only the others.
    fewer = score_of(context_of(bought, test_rows=10)).labels
    assert fewer is not None
    assert (fewer.series, fewer.n, fewer.key == labels.key) == (labels.series, 10, False)
    # $0.20 a label: 40 test labels and 30 dev labels leave so much less for train labels.
    most = context_of(bought).budget_micros // 200_000
    assert most - 70 - 2 <= score.model.n_labels <= most - 70


def test_test_labels_are_never_trained_on(bought: World) -> None:
    prepared = bought.prepared(strategy="distill", n_initial=20)
    recipe = strategy("distill").ask(prepared.context, [])
    assert recipe is not None
    steps = recipe.steps()  # type: ignore[union-attr]
    reads = {(type(step), given.split) for step in steps for given in step.inputs if isinstance(given, Buy)}
    assert {kind for kind, split in reads if split == "test"} == {Score}
    held = {row.text for row in (*prepared.test, *prepared.dev)}
    assert not held & {row.text for row in (*prepared.train, *prepared.pool)}


def test_a_budget_below_dev_and_test_labels_is_told_what_they_cost(bought: World) -> None:
    found = strategy("annotate").ask(context_of(bought, budget_micros=10_000_000), [])
    assert "with 30 dev labels and 40 test labels, cost $1" in found.reason  # type: ignore[union-attr]


def test_the_score_is_of_rows_that_got_a_label_by_the_labels_that_were_bought(
    bought: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {row.text for row in load_data(load_task(bought.task)).test[::4]}
    monkeypatch.setattr(Teller, "refuses", staticmethod(lambda text: text in refused))
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = bought.prepared(
        strategy="annotate", n_initial=None, overrides={"student": {"method": "tfidf", "precision": "fp32"}}
    )
    point = one.execute(prepared)
    assert point.is_ok, point.result.reason
    (path,) = (path for path in (tmp_path / "store").rglob("predictions.json"))
    said = json.loads(path.read_text())
    assert set(said["sources"]) == {row.text for row in prepared.test} - refused
    assert dict(zip(said["sources"], said["golds"], strict=True)) == {
        text: Teller.hidden[text] for text in said["sources"]
    }
    assert "10 of 40 test rows got no label, and scores leave them out" in point.result.notes
    assert point.result.quality is not None
    charged = point.result.charge_usd
    assert charged == pytest.approx(0.2 * (point.result.n_labels + 30 + 30), abs=0.01)
    # Another seed asks nobody for dev and test labels again: one series more, of train labels.
    assert len(list((tmp_path / "store" / "bought").iterdir())) == 3
    other = one.execute(
        bought.prepared(strategy="annotate", n_initial=None, seed=1, overrides=prepared.asked.overrides)
    )
    assert other.is_ok, other.result.reason
    assert len(list((tmp_path / "store" / "bought").iterdir())) == 4
    assert other.circumstance.cash_usd == pytest.approx(0.2 * other.result.n_labels, abs=0.01)


def test_people_label_by_files_from_init_to_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(Path("tickets.csv"), 120)
    make_checkpoint(Path("encoder"), texts(120), n_layers=1)
    made = outlay.init("tickets.csv", to_label=ASKED, label_price="0.05", splits=SplitOptions(test=20, dev=10))
    assert made.prices is not None
    how: dict[str, Any] = {
        "models": outlay.Models(teacher="encoder", student="teacher"),
        "options": outlay.RunOptions(
            settings={"student": {"method": "tfidf", "precision": "fp32"}}, rivals=False, threads=1
        ),
        "setup": outlay.Setup(prices=[made.prices], store="store"),
        "out": "runs",
    }
    plan = outlay.dry_run(made.task, 4, strategies="annotate", **how)
    assert plan.n_labels == 79
    assert not Path("runs").exists()
    waiting = outlay.run(made.task, 4, strategy="annotate", **how)
    assert waiting.status == "waiting"
    for path in Path("store").rglob("annotator-*.csv"):
        rows = rows_of(path)
        write_rows(path, [{**row, "label": topic_of(row["message"])} for row in rows])
    done = outlay.run(made.task, 4, strategy="annotate", **how)
    assert done.status == "ok", done.reason
    assert done.point is not None
    assert done.point.result.n_dev == 10
    assert done.point.result.charge_usd == pytest.approx(0.05 * 79, abs=0.01)
    with pytest.raises(outlay.errors.LabelError, match="outlay run"):
        outlay.evaluate("runs", outlay.Data(task=str(made.task)))


def test_sellers_of_the_task_file_stand_unless_a_request_names_its_own(bought: World) -> None:
    resolved = bought.workbench.resolve(bought.request(strategy="annotate", n_initial=None))
    (people,) = resolved.sellers
    assert (people.name, people.kind) == (HUMAN, "files")
    with pytest.raises(UsageError, match="needs labels, and dev rows"):
        bought.workbench.resolve(bought.request(dev="given"))
    noisy = SellerSpec(HUMAN, outlay.ReplayOptions(error_rate=0.1))
    with pytest.raises(UsageError, match="who replay gold labels"):
        bought.workbench.resolve(bought.request(sellers=(noisy,)))
    asked = bought.request(
        strategy="llm_annotate",
        n_initial=None,
        sellers=(SellerSpec(LLM, outlay.ReplayOptions(price_item="label/demo")),),
    )
    assert {seller.name for seller in bought.workbench.resolve(asked).sellers} == {LLM, HUMAN}
