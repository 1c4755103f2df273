"""Labels for real as a user buys them: a model's by `run`, `labels try` and `labels verify`, those of people by file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from outlay.cli.lazy_help import with_values
from outlay.engine.real_sellers import llm_seller
from outlay.engine.seller_options import example_options, sellers_of
from outlay.errors import OutlayError, StudyFileError, UsageError
from outlay.labels.llm.journal import journal_path
from outlay.money.amounts import DOLLAR_UNIT, PriceBook
from outlay.money.ledger import Ledger
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.study.grid import load_study
from outlay.tasks.loading import load_data
from outlay.tasks.seller_blocks import FilesSeller, OpenAISeller, ReplaySeller
from outlay.tasks.task import load_task
from tests.annotators import fill_in, folder_of
from tests.cashier import Cashier, cashier
from tests.checkpoints import make_checkpoint
from tests.test_cli import TASK, WORDS, Ran, outlay, refused, row, write_task

KEY = "sk-planted-in-the-environment"
KEYWORDS = {label: [words.split()[-1] for words in some] for label, some in WORDS.items()}
PRICES = "".join(
    f'[[price]]\nitem = "{item}"\nunit = "1M tokens"\nusd = "{usd}"\nsource = "a test"\n'
    for item, usd in {"far/tiny input": "0.25", "far/tiny cached input": "0.025", "far/tiny output": "2"}.items()
)
N_SHOWN, N_TRAIN = 6, 60
GOLD = {row(i)["message"]: row(i)["label"] for i in range(N_TRAIN)}


@dataclass(frozen=True)
class Shop:
    """A task, prices, a checkpoint and a store in a folder, and a provider with a bill of its own."""

    root: Path
    till: Cashier

    @property
    def task(self) -> Path:
        return self.root / "task" / "task.yaml"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def journal(self) -> Path:
        return journal_path(self.store / "asked", self.till.base_url, "tiny")

    def model(self, *more: object) -> tuple[object, ...]:
        return ("--llm", "tiny", "--llm-url", self.till.base_url, "--prices", self.root / "prices.toml", *more)

    def run(self, out: str, *more: object, budget: object = 3) -> Ran:
        plain = (
            "--teacher",
            self.root / "checkpoint",
            "--student",
            "cut:1",
            "--set",
            "student.epochs=1",
            "--threads",
            1,
        )
        where = ("--out", self.root / out, "--store", self.store)
        return outlay("run", self.task, "--budget", budget, *where, *plain, *more)

    def try_(self, *more: object) -> Ran:
        return outlay("labels", "try", self.task, "--store", self.store, *more)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    write_task(root / "task")
    make_checkpoint(root / "checkpoint", [row(i)["message"] for i in range(200)])
    (root / "prices.toml").write_text(PRICES)
    patched = pytest.MonkeyPatch()
    patched.setenv("OPENAI_API_KEY", KEY)
    with cashier(keywords=KEYWORDS, api_key=KEY, noise=0.1) as till:
        yield Shop(root, till)
    patched.undo()


@dataclass(frozen=True)
class Bought:
    """A run of llm_annotate that was done once: what it printed, and what the provider had billed by its end."""

    shop: Shop
    ran: Ran
    billed: Fraction
    n_asked: int

    @property
    def out(self) -> Path:
        return self.shop.root / "bought"


@pytest.fixture(scope="module")
def bought(shop: Shop) -> Bought:
    ran = shop.run("bought", "--strategy", "llm_annotate", *shop.model("--llm-examples", f"fixed:{N_SHOWN}"))
    return Bought(shop, ran, shop.till.billed, len(shop.till.requests))


# --- a run -------------------------------------------------------------------------------------------------------------


def test_labels_of_a_model_are_bought_trained_on_and_charged_as_the_provider_bills_them(bought: Bought) -> None:
    assert bought.ran.code == 0, bought.ran.err
    ledger = Ledger(bought.out / "ledger.sqlite")
    (run,) = ledger.run_ids()
    paid = [entry for entry in ledger.entries(run) if entry.kind == "settle" and entry.unit == DOLLAR_UNIT]
    assert sum((entry.quantity for entry in paid), Fraction(0)) == bought.billed > 0
    (point,) = json.loads((bought.out / "points.json").read_text())
    result = point["result"]
    assert (result["status"], result["n_labels"], result["n_llm_labels"]) == ("ok", N_SHOWN, N_TRAIN - N_SHOWN)
    host = bought.shop.till.base_url.split("/")[2]
    who = f"tiny at {host} ({N_SHOWN} fixed examples)"
    assert result["label_sources"] == [
        {"seller": "llm", "who": who, "n_labels": N_TRAIN - N_SHOWN, "refused": {}, "n_lost": 0}
    ]
    said = " ".join(bought.ran.out.split())
    assert f"labels: llm: {N_TRAIN - N_SHOWN} labels of {who}" in said
    assert f"llm labels: {who}" in said
    status = outlay("study", "status", bought.out).out
    assert f"llm labels: {who}" in status
    assert f"llm labels: {who}" in (bought.out / "report.html").read_text()


def test_the_same_run_again_asks_nothing(bought: Bought) -> None:
    n_before = len(bought.shop.till.requests)
    options = ("--llm-examples", f"fixed:{N_SHOWN}", "--out", bought.shop.root / "again")
    again = bought.shop.run("again", "--strategy", "llm_annotate", *bought.shop.model(*options))
    assert again.code == 0, again.err
    assert len(bought.shop.till.requests) == n_before


def test_the_key_is_in_no_file(bought: Bought) -> None:
    files = [path for path in bought.shop.root.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_plan_says_what_labels_are_expected_to_cost_and_cost_at_most(shop: Shop) -> None:
    options = ("--strategy", "llm_annotate", *shop.model("--llm-examples", "none"), "--dry-run")
    planned = shop.run("planned", *options, "--json").json
    (cost,) = planned["label_costs"]
    assert cost["seller"] == "llm"
    assert 0 < cost["expected_usd"] < cost["at_most_usd"]
    assert planned["charge_at_most_usd"] >= cost["at_most_usd"]
    text = shop.run("planned", *options).out
    assert "Labels of llm: $" in text
    assert "expected, at most $" in text
    assert not (shop.root / "planned").exists()


def test_options_stand_in_place_of_the_task_s_keys(shop: Shop, tmp_path: Path) -> None:
    """The task names the address and the examples, the option the model; its price goes with it."""
    sellers = (
        "\nsellers:\n  llm: {kind: openai, model: old, base_url: 'http://x/v1', price_item: old, examples: none}\n"
    )
    task = load_task(str(write_task(tmp_path / "task", TASK + sellers)))
    found = {spec.name: spec for spec in sellers_of(task.sellers, {}, ReplayOptions(), {"model": "tiny"}, None)}
    assert found["llm"].chosen == {"model": "tiny", "base_url": "http://x/v1", "examples": "none"}
    (tmp_path / "sellers.yaml").write_text("sellers:\n  llm: {kind: openai, model: tiny, examples: none}\n")
    planned = shop.run(
        "planned",
        "--strategy",
        "llm_annotate",
        "--sellers",
        tmp_path / "sellers.yaml",
        "--llm-price",
        "free",
        "--dry-run",
    )
    assert planned.code == 0, planned.err
    assert "Labels of llm: $0.00 expected" in planned.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--llm", "tiny", "--llm-error-rate", "0.3"), ("--llm asks", "--llm-error-rate replays", "one of the two")),
        (("--llm-url", "http://x/v1"), ("no language model is named", "--llm")),
        (("--llm", "tiny", "--llm-examples", "some"), ("'some'", "nearest:8")),
        (("--llm", "tiny", "--llm-examples", "none:3"), ("'none:3'", "takes no number")),
        (("--llm", "tiny", "--llm-url", "ftp://x"), ("http://",)),
        (("--llm", "tiny", "--llm-way", "letter"), ("way", "'letter'")),
        (("--llm", "unpriced"), ("no price of the tokens of 'unpriced'", "outlay prices fetch")),
        (("--sellers", "nowhere.yaml"), ("nowhere.yaml", "sellers")),
        (("--llm", "tiny", "--wait", "0"), ("0", "more than 0")),
        ((), ("--llm", "--llm-error-rate")),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    shop: Shop, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    refused(shop.run("refused", "--strategy", "llm_annotate", *options), *says)
    assert not (shop.root / "refused").exists()


def test_people_who_fill_in_files_keep_their_kind() -> None:
    """Options of replay do not turn people into a replay of gold labels."""
    files = {"people": FilesSeller(kind="files", folder="here")}
    (found,) = sellers_of(files, {}, ReplayOptions(redundancy=3), {}, None)
    assert (found.kind, found.chosen) == ("files", {"folder": "here", "redundancy": 3})
    with pytest.raises(UsageError, match="of kind files"):
        sellers_of(files, {}, ReplayOptions(error_rate=0.1), {}, None)
    replay = {"people": ReplaySeller(kind="replay", price_item="label/wlp")}
    (found,) = sellers_of(replay, {}, ReplayOptions(redundancy=3), {}, None)
    assert found.replay == ReplayOptions(redundancy=3, price_item="label/wlp")


def test_examples_that_nobody_labelled_are_shown_no_less(shop: Shop, tmp_path: Path) -> None:
    """People may refuse a row that was bought to be shown: the others are."""
    task = load_task(str(shop.task))
    rows = load_data(task).train
    for how, n_given, n_shown in (("fixed", 3, 3), ("nearest", 3, 3), ("shuffled", 3, 3), ("fixed", 0, 0)):
        block = OpenAISeller(kind="openai", model="tiny", price_item="free", n_examples=5, examples=how)  # type: ignore[arg-type]
        seller = llm_seller(block, task, PriceBook.load(), 0, tmp_path, rows[:n_given])
        bare = [replace(each, label=None) for each in rows[10:12]]
        assert len(seller.costs(bare)) == len(bare)
        assert seller.options.n_examples == max(1, n_shown)
        assert (seller.options.examples == "none") == (n_shown == 0)


def test_example_options_have_a_number_or_none() -> None:
    assert example_options("none") == {"examples": "none"}
    assert example_options("nearest:8") == {"examples": "nearest", "n_examples": 8}


# --- labels try --------------------------------------------------------------------------------------------------------


def test_a_trial_says_how_good_labels_are_and_what_they_cost(shop: Shop) -> None:
    billed = shop.till.billed
    options = (*shop.model("--llm-examples", "none"), "--rows", 20)
    found = shop.try_(*options, "--json").json
    (model,) = found["models"]
    assert (found["split"], found["n_rows"], model["n_labels"], model["refused"]) == ("dev", 20, 20, {})
    gold = [sum(each.values()) for each in model["confusion"].values()]
    assert sum(gold) == 20
    right = sum(each[label] for label, each in model["confusion"].items())
    assert model["n_right"] == right
    assert model["agreed"] == right / 20
    assert model["score"]["value"] == pytest.approx(100 * right / 20)
    assert 0 <= model["ece"] <= 100
    assert len(model["right_by_thirds"]) == 3
    spent = shop.till.billed - billed
    assert model["usd_per_1000_labels"] == pytest.approx(float(spent) * 1000 / 20)
    assert model["usd_per_1000_correct"] == pytest.approx(float(spent) * 1000 / right)
    n_asked = len(shop.till.requests)
    again = shop.try_(*options)
    assert len(shop.till.requests) == n_asked, "what was received is asked again"
    assert again.code == 0
    for words in ("Cohen's kappa", "$ per 1,000 labels", "1,000 correct", "calibration error", "refused", "20 of 20"):
        assert words in again.out


def test_models_stand_beside_each_other_and_examples_are_told(shop: Shop) -> None:
    more = ("--llm", "other", "--llm-price", "far/tiny", "--llm-examples", "fixed:4", "--rows", 5, "--split", "test")
    ran = shop.try_(*shop.model(*more))
    assert ran.code == 0, ran.err
    assert "tiny at" in ran.out
    assert "other at" in ran.out
    assert "4 labelled train rows are at hand as examples; a run has to buy them" in ran.out


def test_the_budget_of_a_trial_is_never_passed(shop: Shop) -> None:
    billed = shop.till.billed
    options = shop.model("--llm-examples", "none", "--rows", 30, "--seed", 5, "--split", "test", "--budget", "0.0006")
    (model,) = shop.try_(*options, "--json").json["models"]
    assert 0 < model["n_labels"] < 30
    assert model["n_beyond_the_money"] == 30 - model["n_labels"]
    assert shop.till.billed - billed <= Fraction("0.0006")


def test_a_trial_that_cannot_be_is_refused_in_one_line(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(shop.try_("--llm", "unpriced"), "no price of the tokens", "outlay prices fetch unpriced")
    refused(shop.try_(), "no language model is named", "--llm")
    refused(shop.try_(*shop.model("--split", "train")), "'train'", "dev or test")
    monkeypatch.delenv("OPENAI_API_KEY")
    ran = shop.try_(*shop.model("--llm-url", "http://192.0.2.1/v1", "--llm-examples", "none"))
    refused(ran, "OPENAI_API_KEY holds no API key")


# --- labels verify -----------------------------------------------------------------------------------------------------


def test_every_bill_can_be_worked_out_again(bought: Bought) -> None:
    found = outlay("labels", "verify", bought.out, "--json").json
    assert found["ok"]
    assert (found["n_entries"], found["differences"]) == (3, [])
    assert found["usd"] == pytest.approx(float(bought.billed))
    of_store = outlay("labels", "verify", "--store", bought.shop.store)
    assert of_store.code == 0, of_store.err
    assert "agree" in of_store.out


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b'\\"input_tokens\\": ', b'\\"input_tokens\\": 1', "the log says $"),
        (b"refund", b"refunX", "is not the one that came"),
        (b'{"received"', b'{"recieved"', "is damaged"),
    ],
)
def test_a_changed_byte_of_the_journal_is_told(bought: Bought, before: bytes, after: bytes, says: str) -> None:
    journal = bought.shop.journal
    whole = journal.read_bytes()
    # The first replies are those to a probe; the run's own come before those of any trial.
    own = [line for line in whole.split(b"\n") if line.startswith(b'{"received"')][N_SHOWN]
    assert before in own
    journal.write_bytes(whole.replace(own, own.replace(before, after, 1)))
    try:
        ran = outlay("labels", "verify", bought.out)
    finally:
        journal.write_bytes(whole)
    assert ran.code == 1
    assert "DIFFERS" in ran.err
    assert says in ran.err


# --- people ------------------------------------------------------------------------------------------------------------


def test_people_are_waited_for_or_taken_as_they_are(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "sellers.yaml").write_text(f"sellers:\n  people: {{kind: files, folder: {tmp_path / 'orders'}}}\n")
    own = ("--strategy", "annotate", "--sellers", tmp_path / "sellers.yaml")
    first = shop.run("people", *own, budget="2.1")
    assert first.code == 75
    assert first.err.rstrip().endswith("run the same command again")
    order = folder_of(tmp_path / "orders")
    listed = outlay("labels", "status", shop.root / "people")
    assert str(order) in listed.out
    assert "0 of 10 labels are in" in listed.out
    fill_in(order / "annotator-1.csv", GOLD.__getitem__, range(4))
    assert outlay("labels", "status", "--store", shop.store, "--json").json[0]["n_labels"] == 4
    later = Timer(0.3, fill_in, (order / "annotator-1.csv", GOLD.__getitem__, range(4, 8)))
    later.start()
    taken = shop.run("people", *own, "--take", budget="2.1")
    later.join()
    assert taken.code == 0, taken.err
    (point,) = json.loads((shop.root / "people" / "points.json").read_text())
    (source,) = point["result"]["label_sources"]
    n = source["n_labels"]
    assert (source["seller"], source["who"]) == ("human", "people who fill in files")
    assert source["refused"] == {"closed without an answer": 10 - n}
    assert outlay("labels", "status", shop.root / "people").out == "nothing is on order\n"
    assert outlay("labels", "verify", shop.root / "people").code == 0


class Answering(logging.Handler):
    """People who answer when they hear that they are waited for."""

    def __init__(self, orders: Path) -> None:
        super().__init__()
        self._orders = orders
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        fill_in(folder_of(self._orders) / "annotator-1.csv", lambda text: GOLD[text])


def test_waiting_says_where_files_are_and_looks_again(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "sellers.yaml").write_text(f"sellers:\n  people: {{kind: files, folder: {tmp_path / 'orders'}}}\n")
    own = ("--strategy", "annotate", "--seed", 1, "--sellers", tmp_path / "sellers.yaml")
    people = Answering(tmp_path / "orders")
    logging.getLogger("outlay.labels.files").addHandler(people)
    try:
        ran = shop.run("waited", *own, "--wait=0.05", budget="1.1")
    finally:
        logging.getLogger("outlay.labels.files").removeHandler(people)
    assert ran.code == 0, ran.err
    (line,) = people.heard
    assert line.startswith(f"0 of 5 labels are in {folder_of(tmp_path / 'orders')}")
    assert line.endswith("looking again every 0.05 s")


# --- studies -----------------------------------------------------------------------------------------------------------

STUDY = """
name: real
strategies: [annotate, llm_annotate]
scales:
  cpu: {{budget_usd: 3, llm: {llm}, tasks: {{{task}: {{}}}}}}
"""


def requests_of(shop: Shop, tmp_path: Path, llm: str) -> list[Any]:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(llm=llm, task=json.dumps(str(shop.task))))
    return [cell.request for cell in load_study(path).at("cpu", price=PriceBook.load().label).cells]


def test_a_study_asks_a_model(shop: Shop, tmp_path: Path) -> None:
    llm = "{model: tiny, url: 'http://x/v1/', key_env: none, examples: nearest, n_examples: 4, price_item: free}"
    annotate, own = requests_of(shop, tmp_path, llm)
    assert annotate.seller("llm") is None
    assert own.seller("llm") == SellerSpec.of(
        "llm",
        "openai",
        {
            "api_key_env": None,
            "base_url": "http://x/v1",
            "examples": "nearest",
            "model": "tiny",
            "n_examples": 4,
            "price_item": "free",
        },
    )
    _, replayed = requests_of(shop, tmp_path, "{error_rate: 0.2, price_item: label/multipit_id}")
    assert replayed.seller("llm") == SellerSpec("llm", ReplayOptions(0.2, price_item="label/multipit_id"))


@pytest.mark.parametrize(
    ("llm", "says"),
    [
        ("{model: tiny, error_rate: 0.2}", "`error_rate` replays"),
        ("{examples: none}", "no language model is named"),
        ("{}", "none is named"),
        ("{model: tiny, url: x}", "http://"),
    ],
)
def test_a_study_without_a_model_is_refused(shop: Shop, tmp_path: Path, llm: str, says: str) -> None:
    with pytest.raises(StudyFileError, match=says) as caught:
        requests_of(shop, tmp_path, llm)
    assert "\n" not in str(caught.value)


def test_a_request_is_the_same_however_its_options_are_written(shop: Shop) -> None:
    """Options at their defaults, and people by their name in task files, say nothing more."""
    from outlay.engine.sellers import normal

    assert normal(SellerSpec.of("llm", "openai", {"model": "m", "samples": 1})) == SellerSpec.of(
        "llm", "openai", {"model": "m"}
    )
    assert normal(SellerSpec.of("people", "files", {})).name == "human"
    with pytest.raises(OutlayError, match="colour"):
        normal(SellerSpec.of("llm", "openai", {"model": "m", "colour": 1}))


def test_an_option_may_stand_without_its_value() -> None:
    assert with_values(["run", "--wait", "--take"]) == ["run", "--wait", "10", "--take"]
    assert with_values(["run", "--wait"]) == ["run", "--wait", "10"]
    assert with_values(["run", "--wait", "0.5", "x"]) == ["run", "--wait", "0.5", "x"]
    assert with_values(["--wait=3", "x"]) == ["--wait=3", "x"]
