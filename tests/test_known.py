"""Results outlive the machine: a study goes on elsewhere from the points that were kept of it, without its store or ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import outlay as front_door
from outlay.engine.point import Point, read_points
from outlay.errors import MissingData
from outlay.money.ledger import Ledger
from outlay.report.study_report import StudyReport
from outlay.storage.store import Store
from outlay.study.index import StudyIndex
from outlay.study.known import KNOWN_FILE
from outlay.study.runner import read_results
from tests.runs import World
from tests.studies import study_in_this_process, write_toy_study
from tests.test_cli import Ran, outlay, refused

# Two strategies at two budgets and two seeds: 8 points, 4 of them of the first seed. `other` differs in one setting alone.
STUDY = """
name: toy
title: Labels or a teacher
strategies: [annotate, distill]
scales:
"""
N = 8


@dataclass(frozen=True)
class Place:
    """A study file beside its task; the study was run whole in `out`, with `store`."""

    root: Path

    @property
    def study(self) -> Path:
        return self.root / "toy.yaml"

    @property
    def whole(self) -> Path:
        return self.root / "out"

    def run(self, *more: object, out: Path, store: Path) -> Ran:
        return outlay("study", "run", self.study, "--out", out, "--store", store, *more)

    def kept(self, folder: Path, which: Callable[[Point], bool] = lambda _: True, *, table: bool = True) -> Path:
        """Some points of the whole study, as they are committed: without store, ledger, manifests and receipts."""
        folder.mkdir(parents=True)
        chosen = [point.to_json() for point in read_points(self.whole / "points.json") if which(point)]
        (folder / "points.json").write_text(json.dumps(chosen))
        for name in ("study.json", *(("points.csv",) if table else ())):
            shutil.copy(self.whole / name, folder / name)
        return folder / "points.json"


def first_seed(point: Point) -> bool:
    return point.request.seed == 0


def annotated(point: Point) -> bool:
    """Half of the cells, under both seeds."""
    return point.request.strategy == "annotate"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    study_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("known")
    world = World(root, n_pool=20, n_layers=2)
    write_toy_study(root / "toy.yaml", STUDY, world.checkpoint, {"cpu": 1, "other": 2}, most_usd=3, n_seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        study_in_this_process(patch)
        ran = Place(root).run(out=root / "out", store=root / "store")
    assert ran.code == 0, ran.err
    return Place(root)


@pytest.fixture
def file(place: Place, tmp_path: Path) -> Path:
    return place.kept(tmp_path / "results", first_seed)


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def untouched(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("points.json", "study.json", KNOWN_FILE, "ledger.sqlite")}


def scores(folder: Path) -> list[list[str]]:
    """The cells of the first table, row by row; intervals left out."""
    table = StudyReport(read_results(folder)).tables[0]
    wanted = [i for i, column in enumerate(table.columns) if column.text not in ("Test", "Cash", "ms a row")]
    values = [[cell.text if cell else "" for i, cell in enumerate(row.cells) if i in wanted] for row in table.rows]
    tests = [
        next(c for c, column in zip(row.cells, table.columns, strict=True) if column.text == "Test")
        for row in table.rows
    ]
    return [
        [*row.heads, *own, str(test and test.value)] for row, own, test in zip(table.rows, values, tests, strict=True)
    ]


# --- going on elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [pytest.param(first_seed, marks=pytest.mark.slow), annotated])
def test_a_study_goes_on_elsewhere(place: Place, tmp_path: Path, which: Callable[[Point], bool]) -> None:
    file, out, store = place.kept(tmp_path / "results", which), tmp_path / "out", tmp_path / "empty"
    ran = place.run("--known", file, out=out, store=store)
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[0] == f"{N} points in {out}: 4 known, 4 to do"
    whole, points = (read_points(folder / "points.json") for folder in (place.whole, out))
    assert [(p.id, p.result_bytes()) for p in points] == [(p.id, p.result_bytes()) for p in whole]
    # Of a known point the circumstance is that of the run elsewhere.
    assert [p.circumstance for p in points if which(p)] == [p.circumstance for p in whole if which(p)]
    assert scores(out) == scores(place.whole)
    # The ledger has the other runs and no known one, and so have receipts and manifests.
    cells = StudyIndex.read(out).cells
    mine = {cell.run for cell in cells if cell.known is None}
    assert len(mine) == 4
    assert {cell.known for cell in cells} == {None, str(file)}
    ledger = Ledger(out / "ledger.sqlite")
    assert set(ledger.run_ids()) == mine
    assert ledger.verify().ok
    assert {path.stem for path in (out / "receipts").iterdir()} == mine
    assert {path.name for path in (out / "runs").iterdir()} == mine
    # What only the known points needed was neither bought nor made.
    planned = place.run("--known", file, "--dry-run", "--json", out=tmp_path / "new", store=store).json["distinct"]
    made = {kind: len(Store(store).find(kind)) for kind in planned["steps"]}
    assert made == planned["steps"]


def test_the_same_command_again_books_nothing(place: Place, file: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    assert place.run("--known", file, out=out, store=store).code == 0
    before = untouched(out)
    again = place.run("--known", file, out=out, store=store)
    assert again.err == f"{N} points in {out}: 4 known, 4 there already, nothing to do\n"
    assert untouched(out) == before
    # The folder needs the file no more, neither to go on nor to be drawn.
    shutil.rmtree(file.parent)
    refused(place.run("--known", file, out=out, store=store), str(file), "does not exist", "leave --known out")
    without = place.run(out=out, store=store)
    assert without.err == again.err
    page = (out / "report.html").read_text()
    assert [untouched(out)[name] for name in before if name != "study.json"] == [
        before[name] for name in before if name != "study.json"
    ]
    drawn = outlay("report", out)
    assert drawn.code == 0, drawn.err
    assert (out / "report.html").read_text() == page
    table = (out / "table.md").read_text()
    assert f"4 of {N} points are taken as known from {file}" in table
    assert "no answers to single rows here" in page


def test_status_tells_what_is_known_and_what_is_left(
    place: Place, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    poor = place.run("--known", file, "--cash-cap", "0.000001", out=out, store=store)
    assert poor.code == 1
    status = outlay("study", "status", out)
    head, _, known, *rest = status.out.splitlines()
    assert head == f"toy (Labels or a teacher), scale cpu: {N} points: 4 ok (4 known), 4 failed"
    assert known == f"known: 4 points of {file}"
    assert rest[-1].startswith("to try what failed again: outlay study run ")
    assert f"--known {file}" in rest[-1]
    document = outlay("study", "status", out, "--json").json
    assert (document["n_by_status"], document["n_known_by_file"]) == ({"ok": 4, "failed": 4}, {str(file): 4})
    # A grid that is stopped has points left.
    change(out / "points.json", lambda points: points.__delitem__(slice(5, None)))
    assert "4 ok (4 known), 1 failed, 3 left" in outlay("study", "status", out).out


def test_a_dry_run_counts_and_prices_what_is_left(place: Place, file: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    every = place.run("--dry-run", "--json", out=out, store=store).json
    ran = place.run("--dry-run", "--json", "--known", file, out=out, store=store)
    rest = ran.json
    assert (every["n_known"], rest["n_known"], rest["n_points"], rest["n_na"]) == (0, 4, N, 0)
    assert [point["status"] for point in rest["points"]] == ["known"] * 4 + ["planned"] * 4
    assert [point["charge_at_most_usd"] for point in rest["points"][:4]] == [0.0] * 4
    assert rest["points"][4:] == every["points"][4:]
    # Seeds are alike, and share nothing but the machine.
    assert Decimal(str(rest["charge_at_most_usd"])) * 2 == Decimal(str(every["charge_at_most_usd"]))
    assert rest["distinct"]["optimizer_steps"] * 2 == every["distinct"]["optimizer_steps"]
    assert rest["distinct"]["steps"]["train"] * 2 == every["distinct"]["steps"]["train"] > 0
    told = place.run("--dry-run", "--known", file, out=out, store=store).out
    assert f"small: {N} points, 0 of them N/A, 4 known" in told
    assert "Charge of what is left at most: " in told
    assert not out.exists()


def test_means_and_intervals_over_seeds_are_there(place: Place, file: Path, tmp_path: Path) -> None:
    """From the points alone where answers are missing; and no pair of strategies is tested over a seed without them."""
    out, store = tmp_path / "out", tmp_path / "store"
    place.run("--known", file, out=out, store=store)
    whole, here = (StudyReport(read_results(folder)) for folder in (place.whole, out))
    for one, other in zip(whole.means, here.means, strict=True):
        assert (one.value, one.n_ok, one.charge_usd, one.charges_usd) == (
            other.value,
            2,
            other.charge_usd,
            other.charges_usd,
        )
        assert other.covers == one.covers == "seeds and rows"
        assert None not in (other.low, other.high)
    assert {test.n_seeds for test in whole.tests} == {2}
    assert {test.n_seeds for test in here.tests} == {1}
    assert all(test.p_holm is None for test in here.tests)


def test_a_study_that_is_known_whole_runs_nothing(place: Place, tmp_path: Path) -> None:
    file = place.kept(tmp_path / "results")
    out, store = tmp_path / "out", tmp_path / "store"
    ran = place.run("--known", file.parent, out=out, store=store)  # the folder stands for its file
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[0] == f"{N} points in {out}: {N} known, nothing to do"
    assert not (out / "runs").exists()
    assert not Ledger(out / "ledger.sqlite").is_begun
    assert json.loads((out / "points.json").read_text()) == json.loads((place.whole / "points.json").read_text())
    assert scores(out) == scores(place.whole)
    assert "Differences" not in (out / "table.md").read_text()
    # It is itself a folder whose points others can take.
    third = place.run("--known", out / "points.json", out=tmp_path / "third", store=store)
    assert third.err.splitlines()[0].endswith(f"{N} known, nothing to do")


def test_without_the_flat_file_the_teachers_are_unknown(place: Place, tmp_path: Path) -> None:
    file = place.kept(tmp_path / "results", table=False)
    place.run("--known", file, out=tmp_path / "out", store=tmp_path / "store")
    outputs = read_results(tmp_path / "out").outputs.values()
    assert {(each.teacher_dev, each.metric, each.charges_usd, each.answered) for each in outputs} == {(None,) * 4}
    assert "| annotate |" in (tmp_path / "out" / "table.md").read_text()


def test_several_files(place: Place, tmp_path: Path) -> None:
    one = place.kept(tmp_path / "one", first_seed)
    two = place.kept(tmp_path / "two", annotated)
    ran = place.run("--known", one, "--known", two, out=tmp_path / "out", store=tmp_path / "store")
    assert ran.err.splitlines()[0].endswith(": 6 known, 2 to do")
    files = [cell.known for cell in StudyIndex.read(tmp_path / "out").cells]
    assert {str(one), str(two), None} == set(files)


def test_a_grid_may_shrink_and_grow_without_its_file(place: Place, tmp_path: Path) -> None:
    file = place.kept(tmp_path / "results")
    out, store = tmp_path / "out", tmp_path / "store"
    place.run("--known", file, out=out, store=store)
    place.run("--seeds", 1, out=out, store=store)
    assert len(read_points(out / "points.json")) == N // 2
    file.unlink()
    assert place.run(out=out, store=store).err.splitlines()[0].endswith(f"{N} known, nothing to do")


def test_what_failed_or_cannot_be_is_not_known(place: Place, tmp_path: Path) -> None:
    file = place.kept(tmp_path / "results")

    def fail(points: Any) -> None:
        for i, status in ((0, "failed"), (1, "na"), (2, "waiting")):
            points[i]["result"] |= {"status": status, "reason": "no cash", "test": None}

    change(file, fail)
    planned = place.run("--known", file, "--dry-run", "--json", out=tmp_path / "out", store=tmp_path / "store").json
    assert [point["status"] for point in planned["points"]] == ["planned"] * 3 + ["known"] * (N - 3)


def test_what_was_run_here_is_not_taken(place: Place, file: Path, tmp_path: Path) -> None:
    """The run of a folder has a receipt and answers; a file that says the same changes nothing."""
    out = tmp_path / "out"
    shutil.copytree(place.whole, out)
    ran = place.run("--known", file, out=out, store=place.root / "store")
    assert ran.err == f"{N} points in {out}: {N} there already, nothing to do\n"
    assert {cell.known for cell in StudyIndex.read(out).cells} == {None}
    assert not (out / KNOWN_FILE).exists()


def test_from_python(place: Place, file: Path, tmp_path: Path) -> None:
    setup = front_door.Setup(store=tmp_path / "store")
    found = front_door.study(place.study, out=tmp_path / "out", known=file, setup=setup)
    assert [each.known for each in found] == [str(file)] * 4 + [None] * 4
    assert [each.point.result_bytes() for each in found] == [
        point.result_bytes() for point in read_points(place.whole / "points.json")
    ]
    known, own = found.runs[0], found.runs[-1]
    assert known.is_ok
    assert known.score is not None
    assert known.receipt == ""
    assert own.receipt
    assert own.model.is_dir()
    with pytest.raises(MissingData, match=f"known from {file} alone"):
        _ = known.model


# --- other settings, wrong files -------------------------------------------------------------------------------------


def test_a_point_of_other_settings_is_no_known_point(place: Place, file: Path, tmp_path: Path) -> None:
    """Its request is the same to the letter: what tells it apart is the run."""
    out, store = tmp_path / "out", tmp_path / "store"
    refused(
        place.run("--scale", "other", "--known", file, out=out, store=store),
        f"{file} knows no run of this study",
        "4 of its 4 points ask what points of this study ask, but were run otherwise",
        "settings",
    )
    assert not out.exists()


def test_points_of_other_settings_are_named_and_run(place: Place, file: Path, tmp_path: Path) -> None:
    """Two of four runs were made otherwise: the others are taken."""

    def rename(index: Any) -> None:
        for cell in index["cells"][:2]:
            cell["run"] = cell["run"][::-1]

    change(file.parent / "study.json", rename)
    (file.parent / "points.csv").unlink()
    ran = place.run("--known", file, "--dry-run", "--json", out=tmp_path / "out", store=tmp_path / "store")
    assert ran.json["n_known"] == 2
    told = place.run("--known", file, "--dry-run", out=tmp_path / "out", store=tmp_path / "store").err
    assert f"note: {file}: 2 of its 4 points ask what points of this study ask, but were run otherwise" in told


def test_a_file_of_another_study_is_refused(place: Place, tmp_path: Path) -> None:
    file = place.kept(tmp_path / "results", lambda point: point.request.seed == 1)
    ran = place.run("--seeds", 1, "--known", file, out=tmp_path / "out", store=tmp_path / "store")
    refused(ran, f"{file} knows no run of this study", "none of its 4 points asks what a point of this study asks")


def test_the_other_precision_is_named(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that would compute in the other precision does not run all again in silence."""
    out, store, study = tmp_path / "first", tmp_path / "store", place.root / "auto.yaml"
    study.write_text(place.study.read_text().replace(", precision: fp32", ""))

    def run(*more: object, out: Path) -> Ran:
        return outlay("study", "run", study, "--seeds", 1, "--store", store, "--out", out, *more)

    assert run("--precision", "fp32", out=out).code == 0
    monkeypatch.setenv("OUTLAY_PRECISION", "bf16")
    second = tmp_path / "second"
    refused(run("--known", out, out=second), str(out), "--precision fp32", "--precision bf16")
    assert not second.exists()
    assert run("--known", out, "--precision", "fp32", out=second).err.splitlines()[0].endswith("4 known, nothing to do")
    # Nor does one that has taken them before.
    refused(run(out=second), str(out), "--precision fp32", "--precision bf16")


Edit = Callable[[Path], object]


def other_result(file: Path) -> None:
    change(file, lambda points: points[0]["result"].update(charge_usd=3.0))


WRONG: dict[str, tuple[Edit, Sequence[str]]] = {
    "no index": (lambda f: (f.parent / "study.json").unlink(), ("no study.json beside it",)),
    "not there": (lambda f: f.unlink(), ("does not exist", "study.json")),
    "no JSON": (lambda f: f.write_text("[{"), ("points.json is not whole JSON",)),
    "no points": (lambda f: f.write_text("[]"), ("has no point with a score",)),
    "no point": (lambda f: f.write_text("[{}]"), ("points.json[0].request is left out",)),
    "a score too high": (
        lambda f: change(f, lambda points: points[0]["result"].update(test=170.0)),
        ("points.json[0].result.test is 170.0",),
    ),
    "an index of another folder": (
        lambda f: change(f.parent / "study.json", lambda index: index.update(cells=index["cells"][4:])),
        ("has no point that the study.json beside it names",),
    ),
    "an index cut short": (
        lambda f: (f.parent / "study.json").write_text('{"format": 1, "cel'),
        ("is no index of a results folder",),
    ),
    "an index of numbers": (
        lambda f: change(f.parent / "study.json", lambda index: [cell.update(run=[7]) for cell in index["cells"]]),
        ("has no point that the study.json beside it names",),
    ),
    "a table of no numbers": (
        lambda f: (f.parent / "points.csv").write_text(
            (f.parent / "points.csv").read_text().replace(",accuracy,", ",accuracy,nan")
        ),
        ("points.csv and", "say different things of run"),
    ),
    "a table of another metric": (
        lambda f: (f.parent / "points.csv").write_text(
            (f.parent / "points.csv").read_text().replace(",accuracy,", ",accurate,")
        ),
        ("points.csv and", "say different things of run"),
    ),
    "no index at all": (lambda f: (f.parent / "study.json").write_text("{}"), ("is no index of a results folder",)),
    "runs exchanged": (
        lambda f: change(
            f.parent / "study.json",
            lambda index: [
                cell.update(run=other["run"])
                for cell, other in zip(index["cells"][:2], json.loads(json.dumps(index["cells"][1::-1])), strict=True)
            ],
        ),
        ("its study.json says that a point is of run", "budget_usd"),
    ),
    "one point for two runs": (
        lambda f: change(
            f.parent / "study.json", lambda index: index["cells"][1].update(point=index["cells"][0]["point"])
        ),
        ("study.json names point", "twice"),
    ),
    "a charge that its table does not have": (other_result, ("points.csv and", "say different things of run")),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_in_one_line(place: Place, file: Path, tmp_path: Path, what: str) -> None:
    edit, says = WRONG[what]
    edit(file)
    if what == "runs exchanged":
        (file.parent / "points.csv").unlink()
    for more in ((), ("--dry-run",)):
        refused(
            place.run("--known", file, *more, out=tmp_path / "out", store=tmp_path / "store"), *says, str(file.parent)
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store" / "bought").exists()


def test_two_results_of_one_run_are_refused(place: Place, file: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    other = place.kept(tmp_path / "other", table=False)
    other_result(other)
    says = ("have different results for run", "first in charge_usd", "and 3.0", "keep the right one")
    both = place.run("--known", file, "--known", other, out=out, store=store)
    refused(both, f"{file} and {other} {says[0]}", *says)
    assert not out.exists()
    # So is one that contradicts the folder's own run, or a point that the folder took before.
    shutil.copytree(place.whole, out)
    refused(place.run("--known", other, out=out, store=place.root / "store"), f"{out} and {other}", *says)
    taken = tmp_path / "taken"
    assert place.run("--known", file, "--seeds", 1, out=taken, store=store).code == 0
    refused(place.run("--known", other, "--seeds", 1, out=taken, store=store), f"{KNOWN_FILE} and {other}", *says)


def test_what_a_folder_keeps_may_be_damaged(place: Place, file: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    place.run("--known", file, "--seeds", 1, out=out, store=store)
    (out / KNOWN_FILE).write_text('{"points": [{}]}')
    refused(place.run("--seeds", 1, out=out, store=store), f"{out / KNOWN_FILE} is damaged", "give --known again")


def test_a_comparison_may_be_known_to_a_study(place: Place, tmp_path: Path) -> None:
    """A run is a run, whoever asked for it."""
    fast = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
    front_door.compare(
        place.root / "task.yaml",
        [4, 6],
        strategies=["annotate"],
        n_initial=20,
        models=front_door.Models(teacher=place.root / "checkpoint", student="cut:1"),
        options=front_door.RunOptions(settings=dict.fromkeys(("teacher", "student", "distil"), fast), threads=1),
        setup=front_door.Setup(store=place.root / "store"),
        out=tmp_path / "compared",
    )
    known = place.run(
        "--known", tmp_path / "compared", "--dry-run", "--json", out=tmp_path / "out", store=tmp_path / "s"
    )
    assert [point["status"] for point in known.json["points"]] == ["known"] * 2 + ["planned"] * (N - 2)
