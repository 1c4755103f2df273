"""The point: a request with its result and the circumstances of its run.

Every comparison, study and report is made of points. Equal requests have equal ``result`` bytes, whatever the executor and
however often a run was resumed; ``circumstance`` is never compared. A value that does not apply is ``None`` (JSON ``null``); a
field is never left out. An amount is a whole number of micro-dollars written as the float nearest to its dollars, so that equal
amounts are equal floats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from outlay.errors import DataError, MissingData
from outlay.money.amounts import MICROS_PER_USD
from outlay.storage.files import plain_number, plain_numbers, write_text

STATUSES = ("ok", "na", "failed", "waiting")
"""Statuses of a point; ``waiting``: labels are ordered and not delivered, and the same command resumes the run."""
CLOCKS = ("flops", "measured")
DEV_KINDS = ("given", "bought", "carved")
LOWEST_SCORE, HIGHEST_SCORE = -0.1, 100.1
"""Limits of a score: 0 to 100, with a margin because the published BERT-iBLEU of a copied source lies just below 0."""


def usd_of(micros: int) -> float:
    """Return the dollars of an amount in micro-dollars, correctly rounded; every amount of a point is made by this function."""
    return micros / MICROS_PER_USD


def micros_of(usd: float) -> int:
    """Return the micro-dollars of an amount read from a point.

    Raises:
        DataError: the amount is negative, not finite or not a whole number of micro-dollars.
    """
    micros = round(usd * MICROS_PER_USD) if math.isfinite(usd) else -1
    if micros < 0 or usd_of(micros) != usd:
        raise DataError(f"{plain_number(repr(usd))} dollars is not a whole, non-negative number of micro-dollars")
    return micros


@dataclass(frozen=True, slots=True)
class Reading:
    """A score by one metric and reading, with its 95 % interval, each 0-100."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PointRequest:
    """The request of a point: ``budget_usd`` is the total budget, ``added_usd`` its part beyond the initial labels.

    ``n_initial`` is the fixed number of labels of the teacher, None where a rule chooses it. ``pool`` lists the parts
    of the unlabelled pool with their number of rows. ``price_book`` is the digest of the prices. ``dev`` is the source of
    the dev labels, one of `DEV_KINDS` (None: there are none).
    """

    task: str
    strategy: str
    budget_usd: float
    added_usd: float | None
    n_initial: int | None
    seed: int
    teacher: str | None
    student: str
    machine: str
    clock: str
    price_book: str
    pool: tuple[tuple[str, int], ...]
    dev: str | None

    @property
    def variant(self) -> str:
        """Name of the strategy in tables, with "(N by rule)" for a strategy that has a teacher and no fixed N."""
        by_rule = self.n_initial is None and self.teacher is not None
        return f"{self.strategy} (N by rule)" if by_rule else self.strategy


@dataclass(frozen=True, slots=True)
class PointResult:
    """The result of a request, a pure function of it within one environment.

    ``test`` and ``dev`` are scores by the main metric of the task, 0-100. ``scores`` maps "metric/reading" to a score with its
    interval. ``seconds`` maps each machine to its seconds by the ``flops`` clock. ``artifacts`` maps a role to a digest.
    ``notes`` are warnings about the scores (`outlay.metrics.degenerate`); in JSON they are left out where there are none.
    """

    status: str
    reason: str | None
    test: float | None
    dev: float | None
    scores: Mapping[str, Reading]
    charge_usd: float
    n_labels: int
    n_llm_labels: int
    llm_tokens_in: int
    llm_tokens_out: int
    n_pool: int
    n_dev: int
    seconds: Mapping[str, float]
    flops: int
    student_parameters: int | None
    artifacts: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointCircumstance:
    """The circumstances of one execution: cash paid, wall time, latency, head of the ledger and environment."""

    cash_usd: float | None = None
    wall_seconds: float | None = None
    latency_ms: float | None = None
    ledger_head: str | None = None
    environment: Mapping[str, str | int | float | None] | None = None


@dataclass(frozen=True)
class Point:
    """A request with its result and circumstance."""

    request: PointRequest
    result: PointResult
    circumstance: PointCircumstance

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of the request."""
        text = json.dumps(_request_to_json(self.request), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_ok(self) -> bool:
        """True where there is a test score."""
        return self.result.status == "ok"

    def to_json(self) -> dict[str, Any]:
        """Return the point as a JSON object, every field in the order of its class and mappings sorted by key."""
        return {
            "request": _request_to_json(self.request),
            "result": _result_to_json(self.result),
            "circumstance": _circumstance_to_json(self.circumstance),
        }

    def result_bytes(self) -> bytes:
        """Return the result as bytes, equal for uninterrupted, resumed and distributed runs of one request."""
        return json.dumps(_result_to_json(self.result), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, document: object, where: str = "point") -> Point:
        """Return the point read from a JSON object.

        Raises:
            DataError: a field is missing, unknown, of another type, or contradicts another; the message names the field.
        """
        parts = _checked(document, _POINT_FIELDS, where)
        point = cls(parts["request"], parts["result"], parts["circumstance"])
        _check_result(point.result, f"{where}.result")
        return point


def _request_to_json(request: PointRequest) -> dict[str, Any]:
    record = {name: getattr(request, name) for name in _REQUEST_FIELDS}
    pool = dict(request.pool)
    if len(pool) != len(request.pool):
        raise DataError(f"the pool names a part twice: {', '.join(name for name, _ in request.pool)}")
    return record | {"pool": pool}


def _result_to_json(result: PointResult) -> dict[str, Any]:
    record = {name: getattr(result, name) for name in _RESULT_FIELDS}
    scores = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in result.scores.items()}
    return record | {
        "scores": dict(sorted(scores.items())),
        "seconds": dict(sorted(result.seconds.items())),
        "artifacts": dict(sorted(result.artifacts.items())),
        **({"notes": list(result.notes)} if result.notes else {}),
    }


def _circumstance_to_json(circumstance: PointCircumstance) -> dict[str, Any]:
    record = {name: getattr(circumstance, name) for name in _CIRCUMSTANCE_FIELDS}
    environment = circumstance.environment
    return record | {"environment": None if environment is None else dict(sorted(environment.items()))}


# Parsing: one checker per type of field, one mapping of checkers per class.
Checker = Callable[[object, str], Any]


def _wrong(value: object, where: str, wanted: str) -> DataError:
    shown = json.dumps(value, default=str)
    return DataError(f"{where} is {shown if len(shown) <= 60 else shown[:57] + '...'}, it must be {wanted}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(value, where, "a non-empty text")
    return value


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(value, where, "a whole number from 0")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _wrong(value, where, "a finite number from 0")
    return float(value)


def _percent(value: object, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, int | float) or not is_number or not LOWEST_SCORE <= value <= HIGHEST_SCORE:
        raise _wrong(value, where, "a score from 0 to 100")
    return float(value)


def _usd(value: object, where: str) -> float:
    number = _number(value, where)
    try:
        micros_of(number)
    except DataError:
        raise _wrong(value, where, "dollars with at most 6 decimals") from None
    return number


def _one_of(*allowed: str) -> Checker:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _wrong(value, where, " or ".join(allowed))
        return value

    return check


def _optional(check: Checker) -> Checker:
    def check_unless_null(value: object, where: str) -> Any:
        return None if value is None else check(value, where)

    return check_unless_null


def _mapping(check: Checker) -> Checker:
    def check_each(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {name: check(item, f"{where}.{name}") for name, item in value.items()}

    return check_each


def _pool(value: object, where: str) -> tuple[tuple[str, int], ...]:
    return tuple(_mapping(_count)(value, where).items())


def _scalar(value: object, where: str) -> str | int | float | None:
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if not (value is None or (isinstance(value, str | int | float) and is_finite)):
        raise _wrong(value, where, "a text, a finite number or null")
    return value


def _reading(value: object, where: str) -> Reading:
    reading = Reading(**_checked(value, {"value": _percent, "low": _percent, "high": _percent}, where))
    if not reading.low <= reading.value <= reading.high:
        raise _wrong(value, where, "low <= value <= high")
    return reading


def _checked(value: object, checkers: Mapping[str, Checker], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    for name in checkers:
        if name not in value:
            raise DataError(f"{where}.{name} is left out; an absent value must be written as null")
    for name in value:
        if name not in checkers:
            raise DataError(f"{where}.{name} is not a field of a point; the fields are {', '.join(checkers)}")
    return {name: check(value[name], f"{where}.{name}") for name, check in checkers.items()}


_REQUEST_FIELDS: dict[str, Checker] = {
    "task": _text,
    "strategy": _text,
    "budget_usd": _usd,
    "added_usd": _optional(_usd),
    "n_initial": _optional(_count),
    "seed": _count,
    "teacher": _optional(_text),
    "student": _text,
    "machine": _text,
    "clock": _one_of(*CLOCKS),
    "price_book": _text,
    "pool": _pool,
    "dev": _optional(_one_of(*DEV_KINDS)),
}

_RESULT_FIELDS: dict[str, Checker] = {
    "status": _one_of(*STATUSES),
    "reason": _optional(_text),
    "test": _optional(_percent),
    "dev": _optional(_percent),
    "scores": _mapping(_reading),
    "charge_usd": _usd,
    "n_labels": _count,
    "n_llm_labels": _count,
    "llm_tokens_in": _count,
    "llm_tokens_out": _count,
    "n_pool": _count,
    "n_dev": _count,
    "seconds": _mapping(_number),
    "flops": _count,
    "student_parameters": _optional(_count),
    "artifacts": _mapping(_text),
}

_CIRCUMSTANCE_FIELDS: dict[str, Checker] = {
    "cash_usd": _optional(_usd),
    "wall_seconds": _optional(_number),
    "latency_ms": _optional(_number),
    "ledger_head": _optional(_text),
    "environment": _optional(_mapping(_scalar)),
}

_POINT_FIELDS: dict[str, Checker] = {
    "request": lambda value, where: PointRequest(**_checked(value, _REQUEST_FIELDS, where)),
    "result": lambda value, where: _result_of(value, where),
    "circumstance": lambda value, where: PointCircumstance(**_checked(value, _CIRCUMSTANCE_FIELDS, where)),
}


def _result_of(value: object, where: str) -> PointResult:
    notes = value.get("notes", []) if isinstance(value, dict) else []
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise _wrong(notes, f"{where}.notes", "an array of texts")
    fields = {name: each for name, each in value.items() if name != "notes"} if isinstance(value, dict) else value
    return PointResult(**_checked(fields, _RESULT_FIELDS, where), notes=tuple(notes))


def _check_result(result: PointResult, where: str) -> None:
    has_score, has_reason = result.test is not None, result.reason is not None
    if (has_score, has_reason) != ((True, False) if result.status == "ok" else (False, True)):
        raise DataError(f"{where}: a point that is ok has a test score and no reason, any other a reason and no score")


def parse_points(document: object, where: str = "points") -> list[Point]:
    """Return the points of a JSON array, checked field by field.

    Raises:
        DataError: a field is wrong, named by its path (``points[3].result.test``), or a request appears twice.
    """
    if not isinstance(document, list):
        raise _wrong(document, where, "an array of points")
    points = [Point.from_json(item, f"{where}[{i}]") for i, item in enumerate(document)]
    first_place: dict[str, int] = {}
    for i, point in enumerate(points):
        if point.id in first_place:
            raise DataError(f"{where}[{i}] asks what {where}[{first_place[point.id]}] asks; a request may stand once")
        first_place[point.id] = i
    return points


def read_points(path: Path) -> list[Point]:
    """Read the points of a ``points.json``.

    Raises:
        MissingData: the file is absent or is not whole JSON.
        DataError: a point is malformed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingData(f"{path} does not exist; `outlay compare` and `outlay study run` write it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MissingData(f"{path} is not whole JSON ({error}); run the comparison again, it resumes") from None
    return parse_points(document, path.name)


def write_points(path: Path, points: Sequence[Point]) -> None:
    """Write ``points.json`` atomically (temporary name, fsync, rename).

    Raises:
        DataError: a point that :func:`parse_points` would refuse to read back.
    """
    text = plain_numbers(json.dumps([point.to_json() for point in points], indent=2, ensure_ascii=False))
    parse_points(json.loads(text), path.name)
    write_text(path, text + "\n", sync=True)
