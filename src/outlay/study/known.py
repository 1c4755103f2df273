"""Known points: finished points of other results folders, which a study takes as done.

A known point is told by the id of its run, the hash of all that decides a result: task and data, models and their checkpoints,
prices, settings, threads, precision. A point's own id will not do, since its request names neither settings nor precision. The
id of the run stands in the `study.json` beside the points; in a `points.csv` beside them stand the dev score of the teacher and
the parts of the charge. What a folder took is kept in it, as `known.json`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, read_points
from outlay.engine.run_dir import STUDY_FILE
from outlay.errors import DataError, MissingData, UsageError
from outlay.metrics import METRICS
from outlay.storage.files import write_json
from outlay.study.index import StudyIndex, words_of

FORMAT = 1
KNOWN_FILE = "known.json"
"""Name of the file in a results folder that keeps the known points it took, whatever becomes of the files they came from."""
POINTS_FILE = "points.json"
CSV_FILE = "points.csv"
PART = "charge_usd:"
"""Prefix of the columns of `points.csv` with the parts of a charge."""


@dataclass(frozen=True, slots=True)
class KnownPoint:
    """A finished point with a score, the id of its run, and the file that it came from as its user named it.

    ``metric``, ``teacher_dev`` and ``charges_usd`` are as in `RunOutputs`; ``None`` where no `points.csv` tells them.
    """

    run: str
    file: str
    point: Point
    metric: str | None = None
    teacher_dev: float | None = None
    charges_usd: Mapping[str, float] | None = None

    @property
    def outputs(self) -> RunOutputs:
        """Outputs of the run as far as they came with the point: neither answers nor a receipt."""
        return RunOutputs(self.run, self.metric, None, self.teacher_dev, self.charges_usd)

    def to_json(self) -> dict[str, Any]:
        """Return the known point as JSON values."""
        charges = None if self.charges_usd is None else dict(self.charges_usd)
        return {
            "run": self.run,
            "file": self.file,
            "metric": self.metric,
            "teacher_dev": self.teacher_dev,
            "charges_usd": charges,
            "point": self.point.to_json(),
        }


class KnownPoints:
    """The known points of a study: those that its folder keeps, and those of the files that are given.

    Raises:
        MissingData: a file is not there, or is not whole JSON.
        DataError: a file holds no points, or says of a run what its neighbour does not.
        UsageError: a file has no index beside it or no point with a score, or two have different results for one run.
    """

    def __init__(self, folder: Path, files: Sequence[Path] = ()) -> None:
        self.by_file = {str(path): _read(path) for path in map(_points_file, files)}
        """Runs of each given file, by its name."""
        self.by_run = kept_points(folder)
        """Known points by run; where several places hold one run, the first of them."""
        places = dict.fromkeys(self.by_run, str(folder / KNOWN_FILE))
        for file, found in self.by_file.items():
            for run, known in found.items():
                if run in self.by_run:
                    refuse_other_result(run, self.by_run[run].point, places[run], known.point, file)
                self.by_run.setdefault(run, known)
                places.setdefault(run, file)


def _points_file(path: Path) -> Path:
    """Return the file of points that is meant: of a folder the one in it."""
    return path / POINTS_FILE if path.is_dir() else path


def _read(path: Path) -> dict[str, KnownPoint]:
    """Read the points with a score of a file by their runs, which its index tells."""
    try:
        points = {point.id: point for point in read_points(path) if point.is_ok}
    except MissingData:
        if path.exists():
            raise
        raise MissingData(
            f"{path} does not exist; name a points.json with the study.json of its folder beside it, or leave --known out "
            "where the results folder has taken its points before"
        ) from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not points:
        raise UsageError(f"{path} has no point with a score, so nothing of it is known; leave it out of --known")
    if not (path.parent / STUDY_FILE).exists():
        raise UsageError(
            f"{path} has no study.json beside it, which tells the run of each point, and with it the settings; put the "
            "study.json of its results folder there"
        )
    more = _more(path.parent / CSV_FILE)
    found: dict[str, KnownPoint] = {}
    taken: set[str] = set()
    for cell in StudyIndex.read(path.parent).cells:
        if not isinstance(cell.run, str) or not isinstance(cell.point, str) or cell.point not in points:
            continue
        if cell.point in taken or cell.run in found:
            raise DataError(
                f"{path.parent / STUDY_FILE} names point {cell.point} or run {cell.run} twice; take it anew"
            )
        point = points[cell.point]
        taken.add(cell.point)
        found[cell.run] = _known(cell.run, path, point, more.get(cell.run, {}))
    if not found:
        raise UsageError(
            f"{path} has no point that the study.json beside it names; put the two files of one results folder together"
        )
    return found


def _more(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a `points.csv` by run; none where there is no such file."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["run"]: row for row in csv.DictReader(file) if row.get("run")}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is no table of points ({error}); draw the report again, or leave the file out"
        ) from None


def _known(run: str, path: Path, point: Point, row: Mapping[str, str]) -> KnownPoint:
    if not row:
        return KnownPoint(run, str(path), point)
    test, charge, teacher_dev = (_number(row.get(name)) for name in ("test", "charge_usd", "teacher_dev"))
    parts = {name.removeprefix(PART): _number(text) for name, text in row.items() if name and name.startswith(PART)}
    charges = {name: usd for name, usd in parts.items() if usd is not None}
    metric = row.get("metric") or None
    is_same = (row.get("id"), test, charge) == (point.id, point.result.test, point.result.charge_usd)
    # Parts are whole micro-dollars, and so is their sum.
    is_whole = not charges or round(1e6 * sum(charges.values())) == round(1e6 * point.result.charge_usd)
    is_known = (metric is None or metric in METRICS) and 0 <= (teacher_dev or 0.0) <= 100
    if not (is_same and is_whole and is_known):
        raise DataError(
            f"{path.parent / CSV_FILE} and {path} say different things of run {run}; take both from one folder, or leave the "
            "table out"
        )
    return KnownPoint(run, str(path), point, metric, teacher_dev, charges or None)


def _number(text: str | None) -> float | None:
    """Return the number of a cell; ``None`` of an empty one, and -1, which is right nowhere, of one that is no number."""
    try:
        value = float(text) if text else None
    except ValueError:
        return -1.0
    return value if value is None or math.isfinite(value) else -1.0


def refuse_other_result(run: str, one: Point, one_place: str, other: Point, other_place: str) -> None:
    """Refuse two different results of one run.

    Raises:
        UsageError: the results differ.
    """
    if one.result_bytes() == other.result_bytes():
        return
    first, second = asdict(one.result), asdict(other.result)
    name = next((name for name in first if first[name] != second[name]), "result")
    values = f": {first[name]} and {second[name]}" if isinstance(first.get(name), float | int | str) else ""
    raise UsageError(
        f"{one_place} and {other_place} have different results for run {run} ({words_of(one)}), first in {name}{values}; "
        "keep the right one"
    )


# --- what a folder keeps ----------------------------------------------------------------------------------------------


def kept_points(folder: Path) -> dict[str, KnownPoint]:
    """Return the known points that a results folder keeps, by run; none where it has taken none.

    Raises:
        DataError: the file of them is damaged.
    """
    path = folder / KNOWN_FILE
    if not path.exists():
        return {}
    try:
        found = [_kept(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["points"]]
        return {known.run: known for known in found}
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and give --known again"
        ) from None


def _kept(entry: dict[str, Any]) -> KnownPoint:
    return KnownPoint(**{**entry, "point": Point.from_json(entry["point"])})


def keep_points(folder: Path, taken: Iterable[KnownPoint]) -> None:
    """Keep known points in a results folder, beside those that it keeps already."""
    kept = kept_points(folder)
    more = [known for known in taken if known.run not in kept]
    if more:
        entries = [known.to_json() for known in (*kept.values(), *more)]
        write_json(folder / KNOWN_FILE, {"format": FORMAT, "points": entries})
