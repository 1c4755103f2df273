"""The command line as a person or a script meets it: real commands on a small task, and every way to ask for the impossible."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from outlay import __version__
from outlay.cli.app import main
from outlay.cli.progress import Screen
from outlay.engine.point import read_points
from outlay.plan.strategies import STRATEGIES
from outlay.storage import store as store_module
from outlay.storage.store import Store
from tests.checkpoints import make_checkpoint

WORDS = {
    "refund": ("money back", "a refund", "charged twice", "return payment"),
    "delivery": ("parcel late", "where is package", "the courier", "shipping"),
    "other": ("hello there", "opening hours", "many thanks", "feedback"),
}
SPLITS = {"train": range(60), "dev": range(60, 90), "test": range(90, 120), "pool": range(120, 200)}
TASK = """
name: tickets
text: "{message}"
labels: [other, refund, delivery]
price_item: label/multipit_id
max_source_tokens: 32
data:
  train: {file: train.jsonl, target: label}
  dev: {file: dev.jsonl, target: label}
  test: {file: test.jsonl, target: label}
pool:
  - {name: train, split: train}
  - {name: more, file: pool.jsonl}
"""
LABEL_USD = 0.2


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def without_rivals(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command without rivals, unless it asks for them or for help: nearly all tests are of the runs beside them.

    A test's own study says so itself, in its file.
    """
    is_shipped = words[:2] == ("study", "run") and not any(word.endswith(".yaml") for word in words[2:])
    n_words = 1 if words[:1] in (("run",), ("compare",), ("demo",)) else 2 if is_shipped else 0
    if not n_words or {"--rivals", "--no-rivals", "--help"} & set(words):
        return words
    return (*words[:n_words], "--no-rivals", *words[n_words:])


def code_of(out: TextIO, err: TextIO, *arguments: object) -> int:
    """The exit code of one command in this process, as the console script runs it, which prints on these streams."""
    argv, sys.argv = sys.argv, ["outlay", *without_rivals(tuple(map(str, arguments)))]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    return 0


def outlay(*arguments: object) -> Ran:
    """One command in this process, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    return Ran(code_of(out, err, *arguments), out.getvalue(), err.getvalue())


def refused(ran: Ran, *says: str) -> None:
    """Exit 1 and one line on standard error that says all of it; nothing on standard output."""
    assert (ran.code, ran.out) == (1, ""), ran
    assert ran.err.startswith("outlay: ")
    assert ran.err.count("\n") == 1, ran.err
    for words in says:
        assert words in ran.err, ran.err


def row(number: int) -> dict[str, str]:
    label = sorted(WORDS)[number % 3]
    words = WORDS[label]
    text = f"ticket {number} about {words[number // 3 % 4]} and {words[number // 12 % 4]} please"
    return {"message": text, "label": label}


def write_task(folder: Path, text: str = TASK) -> Path:
    folder.mkdir(parents=True)
    for name, numbers in SPLITS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    (folder / "task.yaml").write_text(text)
    return folder / "task.yaml"


@dataclass(frozen=True)
class Shop:
    """A task, a checkpoint and a store below one folder."""

    root: Path
    task: Path
    checkpoint: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    def models(self) -> tuple[object, ...]:
        epochs = [f"--set={role}.epochs=1" for role in ("teacher", "student", "distil")]
        return ("--teacher", self.checkpoint, "--student", "cut:1", *epochs, "--threads", "1")

    def run(self, out: Path, *more: object, budget: object = 6, store: Path | None = None) -> Ran:
        own = {f"--set={str(word).partition('=')[0]}" for word in more}
        models = [word for word in self.models() if str(word).rpartition("=")[0] not in own]
        return outlay(
            "run", self.task, "--budget", budget, "--out", out, "--store", store or self.store, *models, *more
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    texts = [row(i)["message"] for i in range(200)]
    return Shop(root, write_task(root / "task"), make_checkpoint(root / "checkpoint", texts))


@pytest.fixture(scope="module")
def first(shop: Shop) -> tuple[Path, Ran]:
    """A run that was done once: its folder, and what it printed."""
    out = shop.root / "first"
    return out, shop.run(out)


@pytest.fixture(scope="module")
def comparison(shop: Shop) -> tuple[Path, Ran]:
    out = shop.root / "comparison"
    grid = ("--budgets", "4,6", "--strategies", "annotate,distill", "--seeds", 2)
    return out, outlay("compare", shop.task, *grid, "--out", out, "--store", shop.store, *shop.models())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# --- the impossible --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("0", ("'0'", "more than $0")),
        ("-5", ("'-5'", "negative", "$0 or more")),
        ("12 dollars", ("'12 dollars'", "not an amount", "write it like 300")),
        ("nan", ("'nan'",)),
        ("", ("''",)),
        ("0.0000001", ("0.0000001",)),
    ],
)
def test_a_budget_that_cannot_be_spent(shop: Shop, tmp_path: Path, budget: str, says: tuple[str, ...]) -> None:
    refused(shop.run(tmp_path / "out", budget=budget), *says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--strategy", "distil"), ("'distil'", "annotate, distill, self_distill", "did you mean distill")),
        (("--machine", "b300"), ("'b300'", "known: cpu", "machine file of your own")),
        (("--this-machine", "b300"), ("no price for 'b300'", "known: a100-40gb", "price file of your own")),
        (("--teacher", "./no-such-folder"), ("'./no-such-folder'", "no folder", "write a hub name")),
        (("--teacher", "package:not_installed/model"), ("not installed", "pip install not-installed")),
        (("--teacher", "nobody/no-such-model"), ("'nobody/no-such-model'", "check the name and the network")),
        (("--student", "cut:9"), ("cut:9", "4 layers", "1 to 4")),
        (("--student", "tiny:1x97"), ("'tiny:1x97'", "multiple of 32")),
        (("--set", "pupil.epochs=2"), ("'pupil'", "teacher, student, distil, teach")),
        (("--set", "teach.beams=two"), ("'teach.beams=two'", "a whole number")),
        (("--set", "teach.sample=1"), ("'teach.sample=1'", "true or false")),
        (("--set", "teach.beams=0"), ("beams is 0", "at least 1")),
        (("--set", "teach.epochs=2"), ("unknown teaching setting 'epochs'", "beams")),
        (("--set", "distil.objective=published"), ("published objective", "hand over classes", "objective=masked")),
        (("--metric-model", "./no-such-folder"), ("accuracy", "no --metric-model")),
        (("--base", "./no-such-folder"), ("'./no-such-folder'", "no folder")),
        (("--set", "teacher.rate=2"), ("'rate'", "known:", "learning_rate")),
        (("--set", "teacher.lr=2"), ("learning_rate is 2", "between 0 and 1")),
        (
            ("--set", "teacher.lr=0.1", "--set", "teacher.learning_rate=0.2"),
            ("teacher.learning_rate is given twice", "once"),
        ),
        (("--set", "teacher.epochs"), ("'teacher.epochs'", "write ROLE.NAME=VALUE")),
        (("--set", "teacher.epochs=many"), ("'teacher.epochs=many'", "a whole number")),
        (("--set", "teacher.epochs=1.5"), ("'teacher.epochs=1.5'", "a whole number")),
        (("--set", "teacher.epochs=true"), ("'teacher.epochs=true'", "a whole number")),
        (("--set", "teacher.patience=x"), ("'teacher.patience=x'", "a whole number or none")),
        (("--set", "distil.temperature=[2]"), ("'distil.temperature=[2]'", "a number")),
        (("--set", "distil.precision=8"), ("'distil.precision=8'", "a word")),
        (("--set", "teacher.epochs=0"), ("epochs is 0", "at least 1")),
        (("--strategy", "llm_annotate"), ("llm_annotate", "name a model with --llm", "--llm-error-rate")),
        (("--strategy", "mix"), ("mix", "how many labels people give", "--n-initial")),
        (("--n-initial", "0"), ("n_initial is 0", "at least 1")),
        (("--pool-rows", "0"), ("pool_rows is 0", "at least 1")),
        (("--n-dev", "31"), ("31 dev labels", "30", "at most that many")),
        (("--dev", "found"), ("'found'", "given, bought, carved, folds or none")),
        (("--student-training", "gratis"), ("'gratis'", "charged or free")),
        (("--redundancy", "2"), ("redundancy is 2", "odd number")),
        (("--seconds-per-label", "inf"), ("inf", "0 or more")),
        (("--cash-cap", "much"), ("'much'", "not an amount")),
        (("--prices", "no-such.toml"), ("no-such.toml", "cannot read")),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_request_that_cannot_be_met(
    shop: Shop, tmp_path: Path, options: tuple[str, str], says: tuple[str, ...]
) -> None:
    refused(shop.run(tmp_path / "out", *options), *says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), ("no 'gpt-3.5-label/tickets'", "name what an LLM's label costs with --llm-price-item")),
        (
            ("--llm-price-item", "gpt-4-label/wlp"),
            ("no price for 'gpt-4-label/wlp'", "did you mean gpt-3.5-label/wlp"),
        ),
        (
            ("--llm-price-item", "text-davinci-003"),
            ("'text-davinci-003' is sold per 1000 tokens", "name an item with a price per label"),
        ),
    ],
)
def test_labels_of_an_llm_without_a_price(
    shop: Shop, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    hired = ("--strategy", "llm_annotate", "--llm-error-rate", "0.3")
    refused(shop.run(tmp_path / "out", *hired, *options), *says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "task check"])
def test_an_unknown_task(tmp_path: Path, command: str) -> None:
    budget = ("--budget", "5", "--out", tmp_path / "out") if command == "run" else ()
    refused(outlay(*command.split(), "multipit", *budget), "'multipit'", "did you mean multipit_id", "YAML file")
    refused(outlay(*command.split(), "./none.yaml", *budget), "none.yaml", "give an existing YAML file")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--budgets", "300,,400"), ("'300,,400'", "commas between")),
        (("--budgets", "300,0"), ("'0'",)),
        (("--budgets", "300,300"), ("budgets", "named twice")),
        (("--budgets", "5", "--strategies", "annotate,annotate"), ("strategies", "named twice")),
        (("--budgets", "5", "--strategies", "annotate,guess"), ("'guess'", "known:")),
        (("--budgets", "5", "--strategies", ","), ("no strategies",)),
        (("--budgets", "5", "--strategies", "annotate,mix"), ("mix", "give --n-initial")),
        (("--budgets", "5", "--students", "cut:1,cut:1"), ("students", "named twice")),
        (("--budgets", "5", "--students", "cut:1,cut:9"), ("cut:9", "1 to 4")),
        (("--budgets", "5", "--strategies", "general_distill", "--general-student", "./none"), ("no folder",)),
    ],
)
def test_a_comparison_that_cannot_be_made(
    shop: Shop, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    refused(outlay("compare", shop.task, *options, "--out", tmp_path / "out", *shop.models()), *says)
    assert not (tmp_path / "out").exists()


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return edit


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            _edit("train.jsonl", lambda t: t.replace('"refund"', '"refunded"', 1)),
            ("'refunded'", "'other', 'refund', 'delivery'"),
        ),
        (_edit("test.jsonl", lambda _: ""), ("test.jsonl", "empty")),
        (_edit("train.jsonl", lambda t: t[: len(t) // 2]), ("train.jsonl", "line")),
        (_edit("pool.jsonl", lambda t: t + json.dumps(row(95)) + "\n"), ("pool", "test", "drop_leaks")),
        (_edit("train.jsonl", lambda t: t + json.dumps(row(95)) + "\n"), ("train", "test", "drop_leaks")),
        (lambda folder: (folder / "dev.jsonl").unlink(), ("dev.jsonl",)),
        (_edit("task.yaml", lambda t: t.replace("label/multipit_id", "label/tickets")), ("'label/tickets'", "known:")),
        (_edit("task.yaml", lambda t: t.replace("labels:", "lables:")), ("lables", "unknown key", "labels")),
        (_edit("task.yaml", lambda t: t + "  - {"), ("task.yaml", "YAML")),
    ],
    ids=["label", "empty", "half", "pool-leak", "train-leak", "missing", "price", "key", "yaml"],
)
def test_data_that_cannot_be_trusted(
    shop: Shop, tmp_path: Path, spoil: Callable[[Path], None], says: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    task = write_task(tmp_path / "task")
    spoil(task.parent)
    ran = outlay("run", task, "--budget", 6, "--out", tmp_path / "out", "--store", tmp_path / "store", *shop.models())
    refused(ran, *says)
    assert not (tmp_path / "out").exists()
    if "price" not in request.node.callspec.id:
        refused(outlay("task", "check", task), *says)


# --- no room ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "outlay-test", str(folder))
    if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk may be mounted: run as root, outside of a container without CAP_SYS_ADMIN")
    yield folder
    subprocess.run(("umount", "-l", str(folder)), check=True)


def test_no_room_for_artifacts(shop: Shop, tmp_path: Path, small_disk: Path) -> None:
    ran = shop.run(tmp_path / "out", "--quiet", store=small_disk / "store")
    assert ran.code == 1
    # The file that did not fit, or the store that took no more.
    assert ran.err.startswith((f"outlay: {small_disk}", "outlay: no room left on the device of "))
    assert "no room left" in ran.err
    assert "outlay store gc" in ran.err
    assert ran.err.count("\n") == 1
    assert outlay("ledger", "verify", tmp_path / "out").code == 0


def test_no_room_for_the_ledger(shop: Shop, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # SQLite says "busy" where there is no room for its shared memory, and would be asked for a whole minute.
    monkeypatch.setattr("outlay.money.ledger.sqlite_file.BUSY_SECONDS", 1.0)
    (small_disk / "filler").write_bytes(b"x" * 60_000)
    ran = shop.run(small_disk / "out", "--quiet")
    assert ran.code == 1
    assert ran.err.startswith("outlay: ")
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == 1, ran.err


def test_a_full_disk_costs_no_label_twice_and_the_same_command_goes_on(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store_module._write

    def full(path: Path, content: bytes | Path) -> str:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device", str(path))
        return real(path, content)

    store = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write", full)
        ran = shop.run(tmp_path / "out", "--quiet", "--json", store=store)
    assert ran.code == 1
    # The file that did not fit, or the store that took no more.
    assert ran.err.startswith((f"outlay: {small_disk}", "outlay: no room left on the device of "))
    assert "no room left" in ran.err
    assert ran.err.count("\n") == 1
    (point,) = json.loads(ran.out)
    assert (point["result"]["status"], point["result"]["test"]) == ("failed", None)
    assert "no room" in point["result"]["reason"]
    assert point["result"]["charge_usd"] == pytest.approx(29 * LABEL_USD)
    ran = shop.run(tmp_path / "out", "--quiet", "--json", store=store)
    (point,) = ran.json
    assert point["result"]["status"] == "ok"
    assert outlay("ledger", "verify", tmp_path / "out").code == 0
    settled = [e for e in entries(tmp_path / "out") if e["kind"] == "settle"]
    assert sum(entry["unit"] == "label" for entry in settled) == 1
    bought = [json.loads(line) for path in (store / "bought").iterdir() for line in path.read_text().splitlines()]
    rows = [name for receipt in bought for name, _ in receipt.get("labels", ())]
    assert len(rows) == len(set(rows)) == 29


def test_a_folder_that_cannot_be_written_is_one_line(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = shop.run(tmp_path / "file" / "out", "--quiet")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("outlay: ")
    assert "file" in ran.err
    assert ran.err.count("\n") == 1


# --- running ---------------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return [dict(entry) for entry in db.execute("SELECT * FROM entries ORDER BY seq")]


def cash_micros(folder: Path) -> int:
    return sum(e["cash_micros"] for e in entries(folder) if e["kind"] in ("settle", "overrun", "lost"))


def test_a_run_ends_with_a_receipt_and_a_table(shop: Shop, first: tuple[Path, Ran]) -> None:
    out, ran = first
    assert ran.code == 0, ran.err
    for words in (
        "Receipt of run",
        "29 train labels",
        "train (contrastive) the",
        "(N by",
        "figure tickets:",
        "receipts: outlay",
    ):
        assert words in ran.out
    assert "spent $5.80" in ran.err
    assert "left $" in ran.err
    (point,) = read_points(out / "points.json")
    assert point.result.status == "ok"
    assert point.result.n_labels == 29
    assert point.result.n_pool == 140
    assert 0 <= point.result.charge_usd <= 6
    left = {"study.json", "report.html", "table.md", "points.csv", "figure-tickets.png", "points.json", "receipts"}
    assert left <= {path.name for path in out.iterdir()}
    page = (out / "report.html").read_text(encoding="utf-8")
    said = [line for line in ran.out.splitlines() if line.startswith(("For $", "predict: "))]
    assert len(said) == 2
    for line in said:
        assert html.escape(line.removeprefix("predict: ")).replace(" ± ", "\u00a0±\u00a0") in page
    assert f"{out / 'model'} (" in page


def test_the_same_command_again_prints_the_same_and_pays_nothing(shop: Shop, first: tuple[Path, Ran]) -> None:
    out, ran = first
    before, points = entries(out), (out / "points.json").read_bytes()
    made = {path: path.stat().st_mtime_ns for path in shop.store.glob("objects/*/*/manifest.json")}
    again = shop.run(out)
    assert (again.code, again.out) == (0, ran.out)
    assert entries(out) == before
    assert (out / "points.json").read_bytes() == points
    assert {p: p.stat().st_mtime_ns for p in shop.store.glob("objects/*/*/manifest.json")} == made


def test_elsewhere_the_same_request_finds_everything_and_pays_no_cash(
    shop: Shop, first: tuple[Path, Ran], tmp_path: Path
) -> None:
    ran = shop.run(tmp_path / "out", "--json")
    (point,), (original,) = ran.json, read_points(first[0] / "points.json")
    assert point["result"] == original.to_json()["result"]
    assert cash_micros(tmp_path / "out") == 0 < cash_micros(first[0])
    assert "reused" in ran.err


def test_a_budget_that_does_not_reach_is_an_answer(shop: Shop, tmp_path: Path) -> None:
    ran = shop.run(tmp_path / "out", budget="0.10")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("outlay: no result: ")
    words = " ".join(ran.out.split())
    assert "na: " in words
    assert "the budget is $0.10; raise it to $0.6" in words
    (point,) = json.loads(shop.run(tmp_path / "out", "--json", budget="0.10").out)
    assert (point["result"]["status"], point["result"]["charge_usd"]) == ("na", 0)
    assert "raise it to" in point["result"]["reason"]


@pytest.mark.parametrize("options", [("--dev", "carved"), ("--dev", "bought", "--n-dev", "5"), ("--dev", "none")])
def test_every_way_to_come_by_dev_labels(shop: Shop, tmp_path: Path, options: tuple[str, ...]) -> None:
    (point,) = shop.run(tmp_path / "out", "--strategy", "annotate", "--json", "--quiet", *options).json
    assert point["result"]["status"] == "ok"
    assert (point["result"]["dev"] is None) == (options[1] == "none")
    expected = {"carved": (29, 3), "bought": (24, 5), "none": (29, 0)}[options[1]]
    assert (point["result"]["n_labels"], point["result"]["n_dev"]) == expected


def test_one_label_and_carved_dev_still_runs(shop: Shop, tmp_path: Path) -> None:
    (point,) = shop.run(tmp_path / "out", "--n-initial", "1", "--dev", "carved", "--json", "--quiet").json
    assert (point["result"]["status"], point["result"]["n_dev"]) == ("ok", 0)


# --- comparing -------------------------------------------------------------------------------------------------------


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[12:16] == b"IHDR"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_comparison_leaves_everything_a_reader_opens(comparison: tuple[Path, Ran]) -> None:
    out, ran = comparison
    assert ran.code == 0, ran.err
    points = read_points(out / "points.json")
    asked = [(p.request.seed, p.request.budget_usd, p.request.strategy) for p in points]
    assert asked == [(s, b, n) for s in (0, 1) for b in (4.0, 6.0) for n in ("annotate", "distill")]
    assert all(p.result.status == "ok" and p.result.charge_usd <= p.request.budget_usd for p in points)
    width, height = png_size(out / "figure-tickets.png")
    assert 300 < width < 5000
    assert 200 < height < 5000
    table = (out / "table.md").read_text()
    assert table.count("annotate") >= 2
    assert "±" in table
    assert "−" in ran.out  # the paired difference of the two strategies
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    receipts = list((out / "receipts").iterdir())
    assert len(receipts) == 8
    assert all("label/multipit_id" in path.read_text() for path in receipts)


def test_what_a_comparison_charges_is_in_its_ledger(comparison: tuple[Path, Ran]) -> None:
    out, _ = comparison
    by_run: dict[str, int] = {}
    for entry in entries(out):
        if entry["kind"] == "settle":
            by_run[entry["run_id"]] = by_run.get(entry["run_id"], 0) + entry["charge_micros"]
    charged = [round(p.result.charge_usd * 1_000_000) for p in read_points(out / "points.json")]
    runs = [cell["run"] for cell in json.loads((out / "study.json").read_text())["cells"]]
    assert [by_run[run] for run in runs] == charged


def test_a_report_is_drawn_again(shop: Shop, comparison: tuple[Path, Ran]) -> None:
    out, ran = comparison
    names = ("table.md", "points.csv", "report.html", "figure-tickets.svg")
    before = {name: (out / name).read_bytes() for name in names}
    for name in (*names, "figure-tickets.png"):
        (out / name).unlink()
    again = outlay("report", out, "--store", shop.store)
    assert (again.code, again.err) == (0, "")
    assert again.out == ran.out
    assert {name: (out / name).read_bytes() for name in names} == before
    png_size(out / "figure-tickets.png")
    assert outlay("report", out, "--store", shop.store, "--json").json == json.loads((out / "points.json").read_text())


def test_nothing_to_report_is_one_line(tmp_path: Path, first: tuple[Path, Ran]) -> None:
    refused(outlay("report", tmp_path), "no results", "--out")
    shutil.copy(first[0] / "ledger.sqlite", tmp_path)
    refused(outlay("report", tmp_path, "--store", tmp_path / "store"), "no results", "outlay compare")


def test_a_fixed_n_shows_the_rule_beside(shop: Shop, tmp_path: Path) -> None:
    fixed = ("--budgets", "6", "--strategies", "distill", "--n-initial", "12", "--json", "--quiet")
    ran = outlay("compare", shop.task, *fixed, "--out", tmp_path / "out", "--store", shop.store, *shop.models())
    assert [(p["request"]["n_initial"], p["result"]["n_labels"]) for p in ran.json] == [(12, 12), (None, 29)]
    assert [p["request"]["added_usd"] for p in ran.json] == [3.6, None]


def test_sizes_are_a_grid(shop: Shop, tmp_path: Path) -> None:
    sizes = ("--budgets", "6", "--strategies", "annotate,general_distill", "--students", "cut:1, cut:2")
    general = ("--general-student", shop.checkpoint, "--json")
    ran = outlay("compare", shop.task, *sizes, *general, "--out", tmp_path / "o", "--store", shop.store, *shop.models())
    asked = [(p["request"]["strategy"], p["request"]["student"], p["request"]["teacher"]) for p in ran.json]
    general_one = ("general_distill", str(shop.checkpoint), None)
    assert asked == [("annotate", "cut:1", None), ("annotate", "cut:2", None), general_one]
    assert "1. annotate, $6.00, seed 0, " in ran.err
    told = (tmp_path / "o" / "table.md").read_text()
    assert "| annotate, student cut:1 |" in told
    assert "general_distill − annotate, student cut:2" in told
    assert "Test score, 0-100: accuracy, published reading" in told


@pytest.mark.parametrize("command", [("run",), ("compare",)])
def test_several_processes_are_for_single_steps(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = outlay(*command, shop.task, "--budget", "6", "--out", tmp_path / "out", *shop.models())
    refused(ran, "launched in 2 processes", "`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`")
    assert not (tmp_path / "out").exists()


# --- the books -------------------------------------------------------------------------------------------------------


def test_every_json_is_json(shop: Shop, first: tuple[Path, Ran]) -> None:
    out, _ = first
    book = outlay("prices", "--json").json
    assert "label/multipit_id" in {price["item"] for price in book["prices"]}
    assert "multipit_id" in {task["name"] for task in outlay("task", "list", "--json").json}
    assert outlay("task", "check", shop.task, "--json").json
    assert outlay("task", "schema").json["$schema"].startswith("https://json-schema.org")
    (receipt,) = outlay("ledger", "show", out, "--json").json
    assert receipt
    assert outlay("ledger", "verify", out, "--json").json["ok"] is True
    kept = outlay("store", "show", "--store", shop.store, "--json").json
    assert {"buy", "train", "teach", "distil", "score"} <= {artifact["kind"] for artifact in kept["artifacts"]}
    assert outlay("store", "gc", "--store", shop.store, "--max-size", "1T", "--json").json["removed"] == []
    (point,) = shop.run(out, "--json").json
    assert set(point) == {"request", "result", "circumstance"}


def test_every_text_is_text(shop: Shop, first: tuple[Path, Ran]) -> None:
    out, _ = first
    assert "a100-40gb" in outlay("prices").out
    assert "multipit_id" in outlay("task", "list").out
    assert "nothing to warn about" in outlay("task", "check", shop.task).out
    assert "Receipt of run" in outlay("ledger", "show", out).out
    assert "agree" in outlay("ledger", "verify", out).out
    assert "train (contrastive) the teacher on 29 labels" in outlay("store", "show", "--store", shop.store).out
    assert outlay("--version").out == f"outlay {__version__}\n"


@pytest.fixture
def copied(first: tuple[Path, Ran], tmp_path: Path) -> Path:
    outlay("ledger", "verify", first[0])
    return Path(shutil.copytree(first[0], tmp_path / "copy"))


@contextlib.contextmanager
def forging(folder: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's file with its guards taken off, and put back afterwards."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        yield db
        for _, sql in guards:
            db.execute(sql)
        db.commit()


@pytest.mark.parametrize("column", ["charge_micros", "cash_micros", "note", "at", "quantity"])
def test_a_changed_row_is_named(copied: Path, column: str) -> None:
    with forging(copied) as db:
        value = "7" if column in ("note", "at", "quantity") else 7
        db.execute(f"UPDATE entries SET {column} = ? WHERE seq = 3", (value,))
    ran = outlay("ledger", "verify", copied)
    assert (ran.code, ran.out) == (1, "")
    assert "DAMAGED, entry 3: " in ran.err
    assert ran.err.count("\n") == 1
    found = outlay("ledger", "verify", copied, "--json")
    assert found.code == 1
    assert (json.loads(found.out)["ok"], json.loads(found.out)["first_bad"]) == (False, 3)


def test_a_lost_tail_is_seen_by_the_run_that_it_belonged_to(shop: Shop, copied: Path) -> None:
    with forging(copied) as db:
        db.execute("DELETE FROM entries WHERE seq >= 10")
    (copied / "ledger.sqlite.anchor").unlink()
    assert outlay("ledger", "verify", copied).code == 1
    refused(shop.run(copied, "--quiet"), "ledger verify")


def test_a_manifest_without_its_anchor_is_one_line(copied: Path) -> None:
    (manifest,) = copied.glob("runs/*/manifest.json")
    manifest.write_text("{}")
    refused(outlay("ledger", "verify", copied), "manifest.json", "no anchor")


def test_a_ledger_that_is_not_there_or_none_at_all(tmp_path: Path) -> None:
    refused(outlay("ledger", "show", tmp_path), "no ledger", "--out")
    (tmp_path / "ledger.sqlite").write_text("not a ledger, just a text that is long enough to be read as a page" * 20)
    refused(outlay("ledger", "show", tmp_path), "ledger.sqlite")
    ran = outlay("ledger", "verify", tmp_path)
    assert ran.code == 1
    assert ran.err.count("\n") == 1


def test_a_run_can_be_topped_up_and_cancelled(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(Store, "put", _no_room)
        assert shop.run(out, "--quiet", store=store).code == 1
    run = entries(out)[0]["run_id"]
    topped = outlay("ledger", "topup", out, run[:4], "2.50")
    assert topped.code == 0
    assert "$2.50 added, $8.50 left" in topped.out
    refused(outlay("ledger", "topup", out, run[:4], "0"), "'0'")
    refused(outlay("ledger", "topup", out, "zzz", "1"), "'zzz'", run)
    cancelled = outlay("ledger", "cancel", out, run[:4], "--store", store)
    assert (cancelled.code, cancelled.err) == (0, "")
    assert "cancelled" in cancelled.out
    again = shop.run(out, "--quiet", store=store)
    assert again.code == 1
    assert again.err.startswith("outlay: ")
    assert "cancel" in again.err
    refused(outlay("ledger", "topup", out, run[:4], "1"), "cancel")
    assert outlay("ledger", "verify", out).code == 0


def _no_room(*_: object, **__: object) -> None:
    from outlay.errors import DiskFull

    raise DiskFull("no room left on the device; free some")


def test_collecting_garbage_keeps_every_label_and_the_next_run_works(shop: Shop, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    (before,) = shop.run(out, "--json", "--quiet", store=store).json
    refused(outlay("store", "gc", "--store", store), "--max-size or --older-than")
    refused(outlay("store", "gc", "--store", store, "--max-size", "lots"), "'lots'", "500M or 20G")
    would = outlay("store", "gc", "--store", store, "--max-size", "1", "--dry-run", "--json").json
    kinds = [artifact.kind for artifact in Store(store).list()]
    assert (len(would["removed"]), kinds.count("buy"), len(kinds)) == (5, 1, 6)
    books = {path.name: path.read_bytes() for path in (store / "bought").iterdir()}
    assert "removed 5 artifacts" in outlay("store", "gc", "--store", store, "--max-size", "1").out
    assert [artifact.kind for artifact in Store(store).list()] == ["buy"]
    assert {path.name: path.read_bytes() for path in (store / "bought").iterdir()} == books
    # The finished run is replayed from its manifest; a new one makes the models again and buys no label.
    (replayed,) = shop.run(out, "--json", "--quiet", store=store).json
    assert replayed == before
    (made_again,) = shop.run(tmp_path / "new", "--json", "--quiet", store=store).json
    assert made_again["result"] == before["result"]
    assert {path.name: path.read_bytes() for path in (store / "bought").iterdir()} == books


# --- manners ---------------------------------------------------------------------------------------------------------


def test_wrong_usage_exits_2() -> None:
    for arguments in (("run",), ("run", "x"), ("no-such-command",), ("run", "x", "--budget", "1", "--no-such-option")):
        ran = outlay(*arguments)
        assert ran.code == 2
        assert "Usage: " in ran.err


def test_ctrl_c_says_how_to_go_on(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outlay.engine.step_runner.StepRunner.make", interrupt)
    ran = shop.run(tmp_path / "out", "--quiet", store=tmp_path / "store")
    assert ran.code == 130
    assert ran.err == "outlay: stopped; what was bought and done is kept, run the same command again to go on\n"
    assert outlay("ledger", "verify", tmp_path / "out").code == 0
    assert not [e for e in entries(tmp_path / "out") if e["kind"] == "hold"][2:]


def test_words_in_brackets_are_words_and_not_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Screen() as screen:
        screen.say("task [/tickets] has [red]3[/red] rows")
        screen.headline("[/]")
    assert "task [/tickets] has [red]3[/red] rows" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text(
        '[[price]]\nitem = "label/[x]"\nunit = "label"\nusd = "1"\nsource = "see [/notes]"\n'
    )
    ran = outlay("prices", "--prices", tmp_path / "mine.toml")
    assert ran.code == 0
    assert "see [/notes]" in ran.out


FIRST = {
    "run": ("budget", "strategy", "teacher", "student", "n-initial", "seed", "data", "prices", "out"),
    "compare": ("budgets", "strategies", "seeds", "teacher", "student", "n-initial", "seed", "data", "prices", "out"),
}
HEADINGS = [
    *("Arguments", "Options", "Strategies", "Models", "Labels and sellers", "Price and machine"),
    *("Training and settings", "Where things lie", "Output"),
]


@pytest.mark.parametrize("command", FIRST)
@pytest.mark.parametrize("width", ["60", "80"])
def test_help_begins_with_what_most_people_need(command: str, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    page = outlay(command, "--help").out
    assert max(map(len, page.splitlines())) < int(width)
    sections = re.split(r"^(\w[\w ]*):$", page, flags=re.M)
    assert sections[1::2] == HEADINGS
    first, told = sections[4], sections[6]
    named = re.findall(r"^  (?:-\w, )?--([\w-]+)", first, re.M)
    assert [name for name in named if name not in ("help", "dry-run")] == list(FIRST[command])
    assert re.findall(r"^  (\w+)  ", told, re.M) == list(STRATEGIES)
    assert "--this-machine" in page
    assert "--here" not in page


def test_help_shows_defaults_that_stand_in_words() -> None:
    assert "$OUTLAY_STORE" in outlay("store", "show", "--help").out
    assert "$OUTLAY_DATA" in outlay("task", "check", "--help").out
