"""Flat files of the points of a study: one row per point, the same columns in CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from outlay.engine.outputs import PARTS, RunOutputs
from outlay.engine.point import Point, Reading
from outlay.report.results import Results
from outlay.storage.files import csv_text, replacing

Kind = Literal["text", "int", "float"]
Value = str | int | float | None
Reader = Callable[[Point, RunOutputs | None], Value]
"""A function that reads a value of a column from a point and the outputs of its run."""

MAX_INT64 = 2**63 - 1
"""Largest 64-bit integer: FLOPs of the largest teachers exceed it, and are 38-digit decimals in Parquet."""

NEEDS_PYARROW = "points.parquet was not written: it needs the pyarrow library; pip install 'outlay[data]'"


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, its type, and the reader of its values."""

    name: str
    kind: Kind
    read: Reader


def fields(results: Results) -> tuple[Field, ...]:
    """Return the columns of a study's points: request, result, outputs of the run, circumstance.

    A mapping of a point (machines, scores, artifacts, the environment) becomes one column per key that any point has, sorted:
    ``seconds:cpu``, ``score:accuracy/published``, ``digest:teacher``, ``environment:torch``. A request's pool is
    JSON text.
    """
    points = results.points
    parts = _names(PARTS, (outputs.charges_usd or {} for outputs in results.outputs.values()))
    return (
        Field("id", "text", lambda point, _: point.id),
        *_request_fields(),
        *_result_fields(points),
        Field("run", "text", _output("run")),
        Field("metric", "text", _output("metric")),
        Field("teacher_dev", "float", _output("teacher_dev")),
        *(Field(f"charge_usd:{name}", "float", _part(name)) for name in parts),
        *_circumstance_fields(points),
    )


def _value_of(score: Reading | None) -> float | None:
    """Return the value of a score; ``None`` without one."""
    return None if score is None else score.value


def rows(results: Results) -> tuple[tuple[Field, ...], list[tuple[Value, ...]]]:
    """Return the columns, and one row per point in the order of the grid."""
    columns = fields(results)
    pairs = [(point, results.outputs.get(point.id)) for point in results.points]
    return columns, [tuple(column.read(*pair) for column in columns) for pair in pairs]


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
    for name in ("task", "strategy", *kinds, "teacher", "student", "machine", "clock", "price_book"):
        yield Field(name, kinds.get(name, "text"), _attribute(f"request.{name}"))
    yield Field("pool", "text", lambda point, _: json.dumps(dict(point.request.pool), ensure_ascii=False))
    yield Field("dev_labels", "text", _attribute("request.dev"))


def _result_fields(points: Sequence[Point]) -> Iterator[Field]:
    kinds: dict[str, Kind] = {
        "status": "text",
        "reason": "text",
        "test": "float",
        "dev": "float",
        "charge_usd": "float",
    }
    counts = ("n_labels", "n_llm_labels", "llm_tokens_in", "llm_tokens_out", "n_pool", "n_dev", "flops")
    for name in (*kinds, *counts, "student_parameters"):
        yield Field(name, kinds.get(name, "int"), _attribute(f"result.{name}"))
    yield Field("notes", "text", lambda point, _: "; ".join(point.result.notes) or None)
    if any(point.result.ece is not None for point in points):
        yield Field("ece", "float", _attribute("result.ece"))
    if any(point.result.teacher_test is not None for point in points):
        yield Field("teacher_test", "float", lambda point, _: _value_of(point.result.teacher_test))
        yield Field("teacher_ece", "float", _attribute("result.teacher_ece"))
    for machine in _names((), (point.result.seconds for point in points)):
        yield Field(f"seconds:{machine}", "float", _item("result.seconds", machine))
    for score in _names((), (point.result.scores for point in points)):
        for part, ending in (("value", ""), ("low", ":low"), ("high", ":high")):
            yield Field(f"score:{score}{ending}", "float", _in_scores(score, part))
    for role in _names((), (point.result.artifacts for point in points)):
        yield Field(f"digest:{role}", "text", _item("result.artifacts", role))


def _circumstance_fields(points: Sequence[Point]) -> Iterator[Field]:
    for name in ("cash_usd", "wall_seconds", "latency_ms"):
        yield Field(name, "float", _attribute(f"circumstance.{name}"))
    yield Field("ledger_head", "text", _attribute("circumstance.ledger_head"))
    environments = [point.circumstance.environment or {} for point in points]
    for name in _names((), environments):
        kind = _kind_of(environment.get(name) for environment in environments)
        yield Field(f"environment:{name}", kind, _in_environment(name, kind))


def _kind_of(values: Iterator[object]) -> Kind:
    types = {type(value) for value in values if value is not None}
    if types == {int}:
        return "int"
    return "float" if types and types <= {int, float} else "text"


def _names(first: Sequence[str], mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return every key of some mappings: those in ``first`` in its order, then the others sorted."""
    found = {name for mapping in mappings for name in mapping}
    return [name for name in first if name in found] + sorted(found - set(first))


def _attribute(path: str) -> Reader:
    """Return the reader of an attribute of a point by its dotted path."""
    get = attrgetter(path)
    return lambda point, _: get(point)


def _item(path: str, key: str) -> Reader:
    """Return the reader of one key of a mapping of a point; None where the point lacks the key."""
    get = attrgetter(path)
    return lambda point, _: get(point).get(key)


def _output(name: str) -> Reader:
    """Return the reader of an attribute of a run's outputs; None without outputs."""
    return lambda _, outputs: getattr(outputs, name, None)


def _part(name: str) -> Reader:
    """Return the reader of one part of a charge."""
    return lambda _, outputs: None if outputs is None else (outputs.charges_usd or {}).get(name)


def _in_scores(name: str, part: str) -> Reader:
    return lambda point, _: getattr(point.result.scores.get(name), part, None)


def _in_environment(name: str, kind: Kind) -> Reader:
    cast: Callable[[Any], Value] = {"text": str, "int": int, "float": float}[kind]

    def read(point: Point, _: RunOutputs | None) -> Value:
        value = (point.circumstance.environment or {}).get(name)
        return None if value is None else cast(value)

    return read
