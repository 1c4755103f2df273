"""A run is a study of one: what `run` and `compare` gain by it, and folders of before."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.outputs import receipt_file
from outlay.engine.point import read_points
from outlay.engine.run_dir import STUDY_FILE
from outlay.errors import UsageError
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.money.amounts import PriceBook
from outlay.report.results import Header
from outlay.storage.store import Store
from outlay.study.index import OLD_FILE, StudyIndex
from outlay.study.progress import Progress, ProgressReports
from outlay.study.runner import Workplace, prepare_session, read_results, status_of
from outlay.workers.local import n_workers_here
from tests.checkpoints import kept_checkpoint, make_checkpoint
from tests.runs import World
from tests.studies import check_books
from tests.test_cli import Ran, Shop, entries, outlay, refused, row, write_task

OLD = Path(__file__).parent / "fixtures" / "old_comparison"
GRID = ("--budgets", "4,6", "--strategies", "annotate,distill")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    texts = [row(i)["message"] for i in range(200)]
    return Shop(root, write_task(root / "task"), make_checkpoint(root / "checkpoint", texts))


def compare(shop: Shop, out: Path, *more: object, store: Path | None = None) -> Ran:
    return outlay("compare", shop.task, *GRID, "--out", out, "--store", store or shop.store, *shop.models(), *more)


@pytest.fixture(scope="module")
def compared(shop: Shop) -> tuple[Path, Ran]:
    out = shop.root / "compared"
    ran = compare(shop, out)
    assert ran.code == 0, ran.err
    return out, ran


# --- what is gained --------------------------------------------------------------------------------------------------


def test_a_step_that_several_points_need_is_made_once(compared: tuple[Path, Ran]) -> None:
    """At both budgets `distill` learns from the same blocks of the same teacher, where the rule buys as many labels."""
    out, _ = compared
    settled = [entry for entry in entries(out) if entry["kind"] == "settle"]
    made = [entry["key"] for entry in settled if "(reused)" not in entry["note"]]
    assert len(made) == len(set(made))
    assert len(settled) > len(made)


def test_status_and_show_know_a_comparison(compared: tuple[Path, Ran], shop: Shop) -> None:
    out, ran = compared
    status = outlay("study", "status", out, "--json").json
    assert (status["n_by_status"], status["is_done"], status["held"]) == ({"ok": 4}, True, [])
    shown = outlay("study", "show", out, "--store", shop.store)
    assert shown.code == 0
    assert shown.out in ran.out
    assert outlay("study", "show", out, "--json").json == json.loads((out / "points.json").read_text())
    assert status_of(out).header.scale is None
    assert "scale" not in outlay("study", "status", out).out


def test_the_command_in_the_index_makes_the_same_runs(compared: tuple[Path, Ran]) -> None:
    out, _ = compared
    before, index = entries(out), (out / STUDY_FILE).read_bytes()
    again = StudyIndex.read(out).again(out)
    assert again is not None
    ran = outlay(*shlex.split(again)[1:], "--quiet", "--json")
    assert ran.json == json.loads((out / "points.json").read_text())
    assert entries(out) == before
    assert (out / STUDY_FILE).read_bytes() == index


def test_what_was_stopped_says_how_to_go_on_and_does(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outlay.engine.step_runner import StepRunner

    real, n_made = StepRunner.make, 0

    def stop(self: StepRunner, *given: Any) -> Any:
        nonlocal n_made
        n_made += 1
        if n_made == 4:
            raise KeyboardInterrupt
        return real(self, *given)

    out, store = tmp_path / "out", tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(StepRunner, "make", stop)
        assert compare(shop, out, "--quiet", store=store).code == 130
    assert outlay("ledger", "verify", out).code == 0
    assert status_of(out).n_by_status["left"] > 0
    (line,) = [each for each in outlay("study", "status", out).out.splitlines() if each.startswith("to go on: ")]
    ran = outlay(*shlex.split(line.removeprefix("to go on: "))[1:], "--quiet", "--json")
    assert [point["result"]["status"] for point in ran.json] == ["ok"] * 4
    assert outlay("ledger", "verify", out).code == 0
    bought = [json.loads(line) for path in (store / "bought").iterdir() for line in path.read_text().splitlines()]
    rows = [name for receipt in bought for name, _ in receipt.get("labels", ())]
    assert len(rows) == len(set(rows))
    assert status_of(out).is_done


@pytest.mark.slow
@pytest.mark.skipif(n_workers_here(1) < 2, reason="two workers of one thread need two cores")
def test_two_workers_come_to_the_same(shop: Shop, compared: tuple[Path, Ran], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = compare(shop, out, "--workers", 2, "--quiet", store=tmp_path / "store")
    assert ran.code == 0, ran.err
    points = read_points(out / "points.json")
    assert [p.result_bytes() for p in points] == [p.result_bytes() for p in read_points(compared[0] / "points.json")]
    assert outlay("ledger", "verify", out).code == 0
    assert (out / "logs" / "worker-1.txt").exists()


def test_more_workers_than_there_is_room_for_are_refused_first(shop: Shop, tmp_path: Path) -> None:
    for command in ("run", "compare"):
        asked = (command, shop.task, "--budget", "6", "--out", tmp_path / "out", *shop.models(), "--workers", 5000)
        refused(outlay(*asked), "5000 workers", "ask for at most")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_available_has_its_receipt(shop: Shop, tmp_path: Path) -> None:
    ran = outlay("run", shop.task, "--budget", "0.1", "--out", tmp_path / "out", "--store", shop.store, *shop.models())
    assert ran.code == 1
    assert "Receipt of run" in ran.out
    (bill,) = outlay("ledger", "show", tmp_path / "out", "--json").json
    assert (bill["budget_micros"], bill["lines"], bill["charge_micros"]) == (100_000, [], 0)
    assert status_of(tmp_path / "out").n_by_status == {"na": 1}


# --- before it runs --------------------------------------------------------------------------------------------------


def lines_of(ran: Ran) -> list[str]:
    return [" ".join(line.replace("│", " ").split()) for line in ran.out.splitlines()]


def test_a_dry_run_says_what_it_takes_and_buys_nothing(shop: Shop, tmp_path: Path) -> None:
    ran = compare(shop, tmp_path / "out", "--dry-run", "--seeds", 2, "--rivals", store=tmp_path / "store")
    assert (ran.code, ran.err) == (0, "")
    lines = lines_of(ran)
    assert lines[0].endswith("points, 0 of them N/A")
    # At $0.20 a label: of $4 and $6 all go into labels, but for one that computing takes, of both seeds.
    assert "annotate, $4.00 2 19 0 2 $7.600004" in lines
    assert "annotate, $6.00 2 29 0 2 $11.600004" in lines
    assert any(line.startswith("distill, $6.00 2 29 140 ") for line in lines)
    assert any(line.startswith("rival_tfidf, $6.00 2 29 0 0 ") for line in lines)
    assert "Labels to buy: 58, where separate runs would buy 192" in lines
    assert "Cash limit: $100.00, by the budgets of all runs" in lines
    # Nobody has measured this machine: the way to it is said, and no number.
    hint = " ".join(lines)
    assert f"no forecast; `outlay machine calibrate --threads 1 --store {tmp_path / 'store'}`" in hint
    assert "Min." not in hint
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store" / "bought").exists()
    assert not (tmp_path / "store" / "objects").exists()


def test_a_dry_run_forecasts_by_the_speed_of_this_machine(shop: Shop, tmp_path: Path) -> None:
    profile = MachineProfile(
        "here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 0.0) | {"steps": 30.0}}
    )
    (tmp_path / "machine.toml").write_text(profile.to_toml(), encoding="utf-8")
    more = ("--dry-run", "--cash-cap", "3", "--n-initial", "15", "--no-rule")
    document = compare(shop, tmp_path / "out", *more, "--json", store=tmp_path / "store").json
    n_steps = document["left"]["optimizer_steps"]
    assert document["left"]["wall_seconds_forecast"] == 30 * n_steps
    assert [point["wall_seconds_forecast"] for point in document["points"]] == [
        30 * point["optimizer_steps"] for point in document["points"]
    ]
    # One teacher and its targets serve both budgets.
    assert n_steps < sum(point["optimizer_steps"] for point in document["points"])
    assert document["cash_limit_usd"] == 3
    lines = lines_of(compare(shop, tmp_path / "out", *more, store=tmp_path / "store"))
    assert f"Time on this machine, forecast: about {round(n_steps / 2)} min, one step after the other" in lines
    assert any(line.startswith("annotate, N = 15, $4.00 19 0 1 0.5 ") for line in lines)
    assert "Cash limit: $3.00, by --cash-cap" in lines
    # With as many threads as nobody has measured there is none.
    other = compare(shop, tmp_path / "out", *more, "--threads", 2, store=tmp_path / "store")
    assert "no forecast; this machine was measured with 1 thread alone; `outlay machine calibrate" in " ".join(
        lines_of(other)
    )


def test_a_dry_run_counts_what_is_left(compared: tuple[Path, Ran], shop: Shop, tmp_path: Path) -> None:
    out, _ = compared
    before = entries(out)
    done = compare(shop, out, "--dry-run")
    assert "4 points, 0 of them N/A, 4 there already" in done.out
    assert done.out.endswith("Nothing to do.\n")
    more = outlay(
        *("compare", shop.task, "--budgets", "4,6,8", "--strategies", "annotate,distill", "--out", out),
        *("--store", shop.store, *shop.models(), "--dry-run", "--json"),
    ).json
    status = {(point["strategy"], point["budget_usd"]): point["status"] for point in more["points"]}
    assert [name for name, each in status.items() if each == "planned"] == [("annotate", 8.0), ("distill", 8.0)]
    assert more["n_finished"] == 4
    assert more["charge_at_most_usd"] == pytest.approx(sum(p["charge_at_most_usd"] for p in more["points"]))
    assert 8 < more["charge_at_most_usd"] <= 16
    # In another folder every run is charged again, and nothing is computed or bought.
    elsewhere = compare(shop, tmp_path / "out", "--dry-run", "--json").json
    assert (elsewhere["n_finished"], elsewhere["n_labels_bought"]) == (0, 0)
    assert sum(elsewhere["left"]["steps"].values()) == elsewhere["left"]["wall_seconds_forecast"] == 0
    assert elsewhere["charge_at_most_usd"] > 16
    assert entries(out) == before


def test_a_dry_run_refuses_what_cannot_be_filled(shop: Shop, tmp_path: Path) -> None:
    asked = ("run", shop.task, "--budget", "0.1", "--out", tmp_path / "out", "--store", shop.store, *shop.models())
    ran = outlay(*asked, "--dry-run")
    assert ran.code == 1
    assert "1 point, 1 of them N/A" in ran.out
    assert ran.err.startswith("outlay: none of the 1 points can be filled, the first: ")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_one_run_shows_one(shop: Shop, tmp_path: Path) -> None:
    ran = shop.run(tmp_path / "out", "--dry-run", store=tmp_path / "store")
    assert ran.code == 0, ran.err
    assert "Separate" not in ran.out
    assert "Sharing" not in ran.out
    assert any(line.startswith("distill, $6.00 ") for line in lines_of(ran))


# --- from Python -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), n_layers=2)


def place(root: Path, **changes: Any) -> Workplace:
    book = PriceBook.load()
    return Workplace(root / "out", Store(root / "store"), book, book.get("cpu"), **changes)


def test_a_list_of_options_is_brought_about_and_read_back(world: World, tmp_path: Path) -> None:
    asked = [
        world.request(strategy="annotate", budget_micros=16_000_000, student="cut:1"),
        world.request(strategy="self_distill", budget_micros=1_000_000, student="cut:1"),
    ]
    header = Header("toy", "Toy", "plain")
    here = place(tmp_path)
    told: list[Progress] = []
    points = prepare_session([*asked, asked[0]], header, here).run(ProgressReports(told.append))
    assert [(each.n_done, each.n_total) for each in told if "seed 0" in each.what] == [(1, 2), (2, 2)]
    assert [point.result.status for point in points] == ["ok", "na"]
    results = read_results(here.folder, here.store)
    assert (results.header, results.points) == (header, tuple(points))
    check_books(here.runner(), world.workbench, asked[:1], points[:1])
    assert receipt_file(here.folder, world.workbench.resolve(asked[0]).run_id).exists()
    # Again it books nothing, and a request that leaves a score out is refused.
    n_entries = len(here.runner().ledger.entries())
    assert prepare_session(asked, header, here).run() == points
    assert len(here.runner().ledger.entries()) == n_entries
    with pytest.raises(UsageError, match=r"drop 1 of its 2 points.*--overwrite"):
        prepare_session(asked[1:], header, here)
    prepare_session(asked[1:], header, here, overwrite=True)


def test_a_score_that_only_its_run_knows_of_is_not_dropped(world: World, tmp_path: Path) -> None:
    """Points are written now and then; a process that is killed in between leaves the run's manifest alone."""
    asked = [
        world.request(strategy="annotate", budget_micros=16_000_000, student="cut:1", seed=seed) for seed in (0, 1)
    ]
    here = place(tmp_path)
    prepare_session(asked[:1], Header("toy", "Toy", "plain"), here).run()
    (here.folder / "points.json").write_text("[]")
    with pytest.raises(UsageError, match=r"drop 1 of its 1 points.*--overwrite"):
        prepare_session(asked[1:], Header("toy", "Toy", "plain"), here)


def test_a_pool_that_is_smaller_than_asked_is_taken_as_it_is(world: World, tmp_path: Path) -> None:
    """In a study the cell would be `na`: there the number of rows is what is studied."""
    asked = [world.request(budget_micros=16_000_000, student="cut:1", pool_rows=100_000)]
    (planned,) = prepare_session(asked, Header("toy", "Toy", "plain"), place(tmp_path)).plan.points
    assert planned.recipe is not None
    assert not (tmp_path / "out").exists()


# --- folders of before -----------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `compare` left before there was one index, beside its task and its model; its store is gone."""
    task = write_task(tmp_path / "tickets")
    kept_checkpoint(task.parent / "checkpoint")
    monkeypatch.chdir(task.parent)
    out = Path(shutil.copytree(OLD, tmp_path / "out"))
    index = json.loads((out / OLD_FILE).read_text())
    (out / OLD_FILE).write_text(json.dumps(index | {"store": str(tmp_path / "store")}))
    return out


def old_command(out: Path, budgets: str = "6.1") -> tuple[object, ...]:
    settings = ("method=full", "epochs=1", "batch_size=16", "learning_rate=0.005", "precision=fp32")
    more = [f"--set={role}.{each}" for role in ("teacher", "student", "distil") for each in settings]
    return (
        *("compare", "task.yaml", "--teacher", "./checkpoint", "--students", "cut:1", "--budgets", budgets),
        *("--strategies", "annotate,distill", "--n-initial", 20, "--no-rule", "--threads", 1, "--out", out),
        *("--store", out.parent / "store", "--student-training", "free", *more),
    )


def test_an_old_folder_is_read(old: Path) -> None:
    points = json.loads((old / "points.json").read_text())
    assert outlay("ledger", "verify", old).code == 0
    bills = outlay("ledger", "show", old, "--json").json
    assert [bill["charge_micros"] for bill in bills] == [round(p["result"]["charge_usd"] * 10**6) for p in points]
    assert status_of(old).n_by_status == {"ok": 2}
    assert outlay("study", "show", old, "--json").json == points
    drawn = outlay("report", old)
    assert drawn.code == 0, drawn.err
    assert "annotate" in drawn.out
    assert (old / OLD_FILE).exists(), "only a command that goes on replaces the index"


def test_an_old_folder_goes_on_and_is_new_from_then_on(old: Path) -> None:
    points, before = json.loads((old / "points.json").read_text()), entries(old)
    refused(outlay(*old_command(old, "7")), "holds the report of another request", "drop 2 of its 2 points")
    again = outlay(*old_command(old), "--json", "--quiet")
    assert again.json == points
    # An old ledger is given the columns of a new one; what was booked stays as it was.
    assert [{name: entry[name] for name in before[0]} for entry in entries(old)] == before
    assert (STUDY_FILE in {path.name for path in old.iterdir()}, (old / OLD_FILE).exists()) == (True, False)
    grown = outlay(*old_command(old, "6.1,7"), "--json", "--quiet")
    assert [point["result"]["status"] for point in grown.json] == ["ok"] * 4
    assert outlay("ledger", "verify", old).code == 0


def test_an_old_run_can_be_topped_up_and_cancelled(old: Path) -> None:
    run = json.loads((old / OLD_FILE).read_text())["runs"][0]
    assert outlay("ledger", "topup", old, run, "1").code == 0
    assert outlay("ledger", "cancel", old, run).code == 0
    assert outlay("ledger", "verify", old).code == 0


def test_a_study_does_not_take_an_old_folder(old: Path) -> None:
    refused(outlay("study", "run", "table2", "--task", "multipit_id", "--out", old), "not of a study", "another --out")
