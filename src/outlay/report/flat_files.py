"""Flat files of the points of a study: one row per point, the same columns in CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from outlay.engine.outputs import PARTS, RunOutputs
from outlay.engine.point import Point
from outlay.report.results import Results
from outlay.storage.files import csv_text, replacing

Kind = Literal["text", "int", "float"]
Value = str | int | float | None

MAX_INT64 = 2**63 - 1
"""Largest 64-bit integer: FLOPs of the largest teachers exceed it, and are 38-digit decimals in Parquet."""

NEEDS_PYARROW = "points.parquet was not written: it needs the pyarrow library; pip install 'outlay[data]'"


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, its type, and the function that reads its value from a point and the outputs of its run."""

    name: str
    kind: Kind
    of: Callable[[Point, RunOutputs | None], Value]


def fields(results: Results) -> tuple[Field, ...]:
    """Return the columns of a study's points: request, result, outputs of the run, circumstance.

    A mapping of a point (machines, scores, artifacts, the environment) becomes one column per key that any point has, sorted:
    ``seconds:cpu``, ``score:accuracy/published``, ``digest:teacher``, ``environment:torch``. A request's pool is
    JSON text.
    """
    points = results.points
    return (
        Field("id", "text", lambda point, _: point.id),
        *_request_fields(),
        *_result_fields(points),
        Field("run", "text", lambda _, outputs: None if outputs is None else outputs.run),
        Field("metric", "text", lambda _, outputs: None if outputs is None else outputs.metric),
        Field("teacher_dev", "float", lambda _, outputs: None if outputs is None else outputs.teacher_dev),
        *(_part(name) for name in _names(PARTS, (outputs.charges_usd or {} for outputs in results.outputs.values()))),
        *_circumstance_fields(points),
    )


def rows(results: Results) -> tuple[tuple[Field, ...], list[tuple[Value, ...]]]:
    """Return the columns, and one row per point in the order of the grid."""
    columns = fields(results)
    outputs_in_order = [results.outputs.get(point.id) for point in results.points]
    return columns, [
        tuple(column.of(point, outputs) for column in columns)
        for point, outputs in zip(results.points, outputs_in_order, strict=True)
    ]


def write_points_csv(path: Path, results: Results) -> Path:
    """Write ``points.csv`` atomically, with all digits; an absent value is an empty cell."""
    columns, table = rows(results)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in columns)
        writer.writerows(map(csv_text, row) for row in table)
    return path


def write_points_parquet(path: Path, results: Results) -> Path | None:
    """Write ``points.parquet`` with null for absent values; return None, without a file, where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None
    types = {"text": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    columns, table = rows(results)
    arrays = []
    for i, column in enumerate(columns):
        values = [row[i] for row in table]
        is_large = column.kind == "int" and any(value is not None and int(value) > MAX_INT64 for value in values)
        arrays.append(pyarrow.array(values, pyarrow.decimal128(38) if is_large else types[column.kind]))
    named = pyarrow.Table.from_arrays(arrays, names=[column.name for column in columns])
    with replacing(path) as temporary:
        parquet.write_table(named, temporary)
    return path


# --- the columns -----------------------------------------------------------------------------------------------------


def _request_fields() -> Iterator[Field]:
    kinds: dict[str, Kind] = {"budget_usd": "float", "added_usd": "float", "n_initial": "int", "seed": "int"}
    plain = (
        "task",
        "strategy",
        "budget_usd",
        "added_usd",
        "n_initial",
        "seed",
        "teacher",
        "student",
        "machine",
        "clock",
    )
    for name in (*plain, "price_book"):
        yield Field(name, kinds.get(name, "text"), _in_request(name))
    yield Field("pool", "text", lambda point, _: json.dumps(dict(point.request.pool), ensure_ascii=False))
    yield Field("dev_labels", "text", _in_request("dev"))


def _result_fields(points: Sequence[Point]) -> Iterator[Field]:
    kinds: dict[str, Kind] = {
        "status": "text",
        "reason": "text",
        "test": "float",
        "dev": "float",
        "charge_usd": "float",
    }
    counts = ("n_labels", "n_llm_labels", "llm_tokens_in", "llm_tokens_out", "n_pool", "n_dev", "flops")
    for name in ("status", "reason", "test", "dev", "charge_usd", *counts, "student_parameters"):
        yield Field(name, kinds.get(name, "int"), _in_result(name))
    yield Field("notes", "text", lambda point, _: "; ".join(point.result.notes) or None)
    for machine in _names((), (point.result.seconds for point in points)):
        yield Field(f"seconds:{machine}", "float", _in_mapping("seconds", machine))
    for score in _names((), (point.result.scores for point in points)):
        for part in ("value", "low", "high"):
            name = f"score:{score}" if part == "value" else f"score:{score}:{part}"
            yield Field(name, "float", _in_scores(score, part))
    for role in _names((), (point.result.artifacts for point in points)):
        yield Field(f"digest:{role}", "text", _in_mapping("artifacts", role))


def _circumstance_fields(points: Sequence[Point]) -> Iterator[Field]:
    for name in ("cash_usd", "wall_seconds", "latency_ms"):
        yield Field(name, "float", _in_circumstance(name))
    yield Field("ledger_head", "text", _in_circumstance("ledger_head"))
    environments = [point.circumstance.environment or {} for point in points]
    for name in _names((), environments):
        kind = _kind_of(environment.get(name) for environment in environments)
        yield Field(f"environment:{name}", kind, _in_environment(name, kind))


def _kind_of(values: Iterator[object]) -> Kind:
    types = {type(value) for value in values if value is not None}
    if types == {int}:
        return "int"
    return "float" if types and types <= {int, float} else "text"


def _names(first: Sequence[str], mappings: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every key of some mappings: those in ``first`` in its order, then the others sorted."""
    found = {name for mapping in mappings for name in mapping}
    return [name for name in first if name in found] + sorted(found - set(first))


def _in_request(name: str) -> Callable[[Point, RunOutputs | None], Value]:
    def of(point: Point, _: RunOutputs | None) -> Value:
        value: Value = getattr(point.request, name)
        return value

    return of


def _in_result(name: str) -> Callable[[Point, RunOutputs | None], Value]:
    def of(point: Point, _: RunOutputs | None) -> Value:
        value: Value = getattr(point.result, name)
        return value

    return of


def _in_circumstance(name: str) -> Callable[[Point, RunOutputs | None], Value]:
    def of(point: Point, _: RunOutputs | None) -> Value:
        value: Value = getattr(point.circumstance, name)
        return value

    return of


def _in_mapping(field: str, name: str) -> Callable[[Point, RunOutputs | None], Value]:
    def of(point: Point, _: RunOutputs | None) -> Value:
        value: Value = getattr(point.result, field).get(name)
        return value

    return of


def _in_scores(name: str, part: str) -> Callable[[Point, RunOutputs | None], Value]:
    def of(point: Point, _: RunOutputs | None) -> Value:
        reading = point.result.scores.get(name)
        value: Value = None if reading is None else getattr(reading, part)
        return value

    return of


def _in_environment(name: str, kind: Kind) -> Callable[[Point, RunOutputs | None], Value]:
    cast: type[str] | type[int] | type[float] = {"text": str, "int": int, "float": float}[kind]

    def of(point: Point, _: RunOutputs | None) -> Value:
        value = (point.circumstance.environment or {}).get(name)
        return None if value is None else cast(value)

    return of


def _part(name: str) -> Field:
    def of(_: Point, outputs: RunOutputs | None) -> Value:
        return None if outputs is None or outputs.charges_usd is None else outputs.charges_usd.get(name)

    return Field(f"charge_usd:{name}", "float", of)
