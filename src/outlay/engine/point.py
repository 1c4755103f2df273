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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from outlay.errors import DataError, MissingData
from outlay.metrics.quality import DoubtfulRow, Quality
from outlay.money.amounts import MICROS_PER_USD
from outlay.plan.strategies import RIVAL_METHODS
from outlay.storage.files import plain_number, plain_numbers, write_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

STATUSES = ("ok", "na", "failed", "waiting")
"""Statuses of a point; ``waiting``: labels are ordered and not delivered, and the same command resumes the run."""
CLOCKS = ("flops", "measured")
DEV_KINDS = ("given", "bought", "carved", "folds")
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


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule for the values of a field in JSON: in words, and as a core schema of pydantic."""

    wanted: str
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> dict[str, Any]:
        """Return the schema with the words as its error; pydantic, which calls this, is imported when a point is read."""
        words = {"custom_error_type": "rule", "custom_error_message": self.wanted}
        return {"type": "custom-error", "schema": self.schema, **words}


def _after(read: Callable[[Any], Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function-after", "schema": schema, "function": {"type": "no-info", "function": read}}


def _whole_micros(usd: float) -> float:
    if usd_of(round(usd * MICROS_PER_USD)) != usd:
        raise ValueError
    return usd


def _one_of(*allowed: str) -> Rule:
    return Rule(" or ".join(allowed), {"type": "literal", "expected": list(allowed)})


_TEXT = {"type": "str", "strict": True}
_COUNT = {"type": "int", "strict": True, "ge": 0}
_FINITE = {"type": "float", "strict": True, "allow_inf_nan": False}
_SCALARS = [_TEXT, {"type": "int", "strict": True}, {"type": "bool", "strict": True}, _FINITE, {"type": "none"}]
_TEXTS = {"type": "dict", "keys_schema": _TEXT, "values_schema": _TEXT}
_PARTS = {"type": "dict", "keys_schema": _TEXT, "values_schema": _COUNT}

Text = Annotated[str, Rule("a non-empty text", _TEXT | {"min_length": 1})]
Count = Annotated[int, Rule("a whole number from 0", _COUNT)]
Number = Annotated[float, Rule("a finite number from 0", _FINITE | {"ge": 0})]
Usd = Annotated[float, Rule("dollars from 0 with at most 6 decimals", _after(_whole_micros, _FINITE | {"ge": 0}))]
Score = Annotated[float, Rule("a score from 0 to 100", _FINITE | {"ge": LOWEST_SCORE, "le": HIGHEST_SCORE})]
Scalar = Annotated[
    str | int | float | None, Rule("a text, a finite number or null", {"type": "union", "choices": _SCALARS})
]
Pool = Annotated[
    tuple[tuple[str, int], ...],
    Rule("an object of whole numbers from 0", _after(lambda parts: tuple(parts.items()), _PARTS)),
]
Methods = Annotated[
    tuple[tuple[str, str], ...],
    Rule("an object of texts", _after(lambda each: tuple(each.items()), _TEXTS)),
]
Notes = Annotated[
    tuple[str, ...],
    Rule("an array of texts", {"type": "tuple", "items_schema": [_TEXT], "variadic_item_index": 0}),
]
_LATER = (
    *("notes", "methods", "max_labels", "test_rows", "ece"),
    *("quality", "teacher_test", "teacher_ece", "teacher_quality", "label_errors", "label_sources"),
)
_TABLES = {"quality", "teacher_quality", "label_errors"}
"""Fields that JSON leaves out where they say nothing, as in points of before."""
_CONFIG = {"extra": "forbid"}
"""Configuration of pydantic for the classes below."""


def method_words(methods: Sequence[tuple[str, str]]) -> str:
    """Return the methods of trainings, given by role, in words: those of teacher and student, such as "full to probe"."""
    return " to ".join(dict.fromkeys(method for _, method in methods)) or "full"


@dataclass(frozen=True, slots=True)
class Reading:
    """A score by one metric and reading, with its 95 % interval, each 0-100."""

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    value: Score
    low: Score
    high: Score


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Count the labels that one seller gave over all purchases of a run, and the rows that got none.

    ``who``: model and host, or people; ``refused``: number of rows by the reason that no label came; ``n_lost``: requests that
    may have been billed and whose replies never came.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    seller: Text
    who: Text
    n_labels: Count
    refused: Mapping[str, Count] = field(default_factory=dict)
    n_lost: Count = 0

    @property
    def troubles(self) -> str:
        """Rows refused and requests lost in words, "; 3 refused: 2 x the model declined, 1 x ..."; empty without any."""
        reasons = ", ".join(f"{n:,} x {reason}" for reason, n in self.refused.items())
        refused = f"; {sum(self.refused.values()):,} refused: {reasons}" if reasons else ""
        return refused + (f"; {self.n_lost:,} requests lost, booked at their worst case" if self.n_lost else "")

    def line(self) -> str:
        """Return one line: "llm: 120 labels of gpt-5-mini at api.openai.com (16 fixed examples); 2 refused: ..."."""
        return f"{self.seller}: {self.n_labels:,} labels of {self.who}{self.troubles}"


@dataclass(frozen=True, slots=True)
class PointRequest:
    """The request of a point: ``budget_usd`` is the total budget, ``added_usd`` its part beyond the initial labels.

    ``n_initial`` is the fixed number of labels of the teacher, None where a rule chooses it. ``pool`` lists the parts
    of the unlabelled pool with their number of rows. ``price_book`` is the digest of the prices. ``dev`` is the source of
    the dev labels, one of `DEV_KINDS` (None: there are none).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    task: Text
    strategy: Text
    budget_usd: Usd
    added_usd: Usd | None
    n_initial: Count | None
    seed: Count
    teacher: Text | None
    student: Text
    machine: Text
    clock: Annotated[str, _one_of(*CLOCKS)]
    price_book: Text
    pool: Pool
    dev: Annotated[str, _one_of(*DEV_KINDS)] | None
    methods: Methods = ()
    max_labels: Count | None = None
    test_rows: Count | None = None

    @property
    def method(self) -> str:
        """Method of the trainings in words: "full", "auto", "probe", or those of teacher and student, "full to probe"."""
        return method_words(self.methods)

    @property
    def student_method(self) -> str:
        """Method by which the student is trained."""
        return self.methods[-1][1] if self.methods else "full"

    @property
    def teacher_method(self) -> str | None:
        """Method by which the teacher is trained; None without one."""
        if self.teacher is None:
            return None
        return self.methods[0][1] if self.methods else "full"

    @property
    def policy(self) -> str:
        """Name of the strategy, with "(N by rule)" for one that has a teacher and no fixed N."""
        by_rule = self.n_initial is None and self.teacher is not None
        return f"{self.strategy} (N by rule)" if by_rule else self.strategy

    @property
    def variant(self) -> str:
        """Name of the strategy in tables: its policy, with a method that is neither published nor the default."""
        if self.is_rival or self.method in ("full", "auto"):
            return self.policy
        return (
            f"{self.policy.removesuffix(')')}; {self.method})"
            if ")" in self.policy
            else f"{self.policy} ({self.method})"
        )

    @property
    def is_rival(self) -> bool:
        """True for a rival, which learns from labels that other runs have bought."""
        return self.strategy in RIVAL_METHODS

    @property
    def own_student(self) -> str | None:
        """The student that is trained; None for a rival that reads no checkpoint."""
        return self.student if not self.is_rival or RIVAL_METHODS[self.strategy] == "probe" else None

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of the request."""
        text = json.dumps(_request_to_json(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PointResult:
    """The result of a request, a pure function of it within one environment.

    ``test`` and ``dev`` are scores by the main metric of the task, 0-100. ``scores`` maps "metric/reading" to a score with its
    interval. ``seconds`` maps each machine to its seconds by the ``flops`` clock. ``artifacts`` maps a role to a digest.
    ``notes`` are warnings about the scores (`outlay.metrics.degenerate`), and lines on a budget that outlasts the rows to label
    (`outlay.plan.labels_left`). ``ece`` is the expected calibration error on the test split, 0-100, of a model that gives
    probabilities: no score, since smaller is better. ``quality`` says where the final model is right and wrong on the test split.
    ``teacher_test``, ``teacher_ece`` and ``teacher_quality`` are of the teacher, which is scored beside, at no charge.
    ``label_errors`` are training labels that are likely wrong, where a probe learned from them
    (`outlay.metrics.quality.label_errors`). ``label_sources``: who gave the labels that were no replayed ones. In JSON these are
    left out where there are none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    status: Annotated[str, _one_of(*STATUSES)]
    reason: Text | None
    test: Score | None = None
    dev: Score | None = None
    scores: Mapping[str, Reading] = field(default_factory=dict)
    charge_usd: Usd = 0.0
    n_labels: Count = 0
    n_llm_labels: Count = 0
    llm_tokens_in: Count = 0
    llm_tokens_out: Count = 0
    n_pool: Count = 0
    n_dev: Count = 0
    seconds: Mapping[str, Number] = field(default_factory=dict)
    flops: Count = 0
    student_parameters: Count | None = None
    artifacts: Mapping[str, Text] = field(default_factory=dict)
    notes: Notes = ()
    ece: Score | None = None
    quality: Quality | None = None
    teacher_test: Reading | None = None
    teacher_ece: Score | None = None
    teacher_quality: Quality | None = None
    label_errors: tuple[DoubtfulRow, ...] = ()
    label_sources: tuple[LabelSource, ...] = ()


@dataclass(frozen=True, slots=True)
class PointCircumstance:
    """The circumstances of one execution: cash paid, wall time, latency, head of the ledger and environment.

    ``latency_ms`` is the wall milliseconds of one answer by the final model, a batch of one row.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    cash_usd: Usd | None = None
    wall_seconds: Number | None = None
    latency_ms: Number | None = None
    ledger_head: Text | None = None
    environment: Mapping[str, Scalar] | None = None


@dataclass(frozen=True)
class Point:
    """A request with its result and circumstance."""

    __pydantic_config__: ClassVar[dict[str, str]] = _CONFIG

    request: PointRequest
    result: PointResult
    circumstance: PointCircumstance

    @cached_property
    def id(self) -> str:
        """Id of the request, `PointRequest.id`, computed once."""
        return self.request.id

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
        point = _read(document, where)
        _check_whole(point, cast("dict[str, Any]", document), where)
        _check_result(point.result, f"{where}.result")
        return point


def _request_to_json(request: PointRequest) -> dict[str, Any]:
    pool = dict(request.pool)
    if len(pool) != len(request.pool):
        raise DataError(f"the pool names a part twice: {', '.join(name for name, _ in request.pool)}")
    record = asdict(request) | {"pool": pool, "methods": dict(request.methods)}
    return {name: value for name, value in record.items() if value or name not in _LATER}


def _result_to_json(result: PointResult) -> dict[str, Any]:
    record = asdict(result)
    for name in ("scores", "seconds", "artifacts"):
        record[name] = dict(sorted(record[name].items()))
    for name in ("quality", "teacher_quality"):
        if record[name] is not None:
            told = {part: value for part, value in record[name].items() if value}
            record[name] = {part: list(each) if isinstance(each, tuple) else each for part, each in told.items()}
    record |= {name: list(record[name]) for name in ("notes", "label_errors", "label_sources")}
    return {name: value for name, value in record.items() if name not in _LATER or value not in (None, [])}


def _circumstance_to_json(circumstance: PointCircumstance) -> dict[str, Any]:
    record, environment = asdict(circumstance), circumstance.environment
    return record | {"environment": None if environment is None else dict(sorted(environment.items()))}


def _wrong(value: object, where: str, wanted: str) -> DataError:
    shown = json.dumps(value, default=str)
    return DataError(f"{where} is {shown if len(shown) <= 60 else shown[:57] + '...'}, it must be {wanted}")


@cache
def _reader() -> TypeAdapter[Point]:
    from pydantic import TypeAdapter

    return TypeAdapter(Point)


def _read(document: object, where: str) -> Point:
    """Read a point by the types of its fields."""
    from pydantic import ValidationError

    try:
        return _reader().validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join((where, *map(str, first["loc"])))
        if first["type"] == "missing":
            raise _left_out(path) from None
        if first["type"] == "unexpected_keyword_argument":
            raise DataError(f"{path} is not a field of a point; remove it") from None
        wanted = first["msg"] if first["type"] == "rule" else "an object"
        raise _wrong(first["input"], path, wanted) from None


def _left_out(path: str) -> DataError:
    return DataError(f"{path} is left out; an absent value must be written as null")


def _check_whole(point: Point, document: Mapping[str, Any], where: str) -> None:
    """Refuse a point without one of its fields; those with a default are optional in Python only."""
    for part in fields(point):
        for each in fields(getattr(point, part.name)):
            if each.name not in document[part.name] and each.name not in _LATER:
                raise _left_out(f"{where}.{part.name}.{each.name}")


def _check_result(result: PointResult, where: str) -> None:
    for name, reading in result.scores.items():
        if not reading.low <= reading.value <= reading.high:
            raise _wrong(asdict(reading), f"{where}.scores.{name}", "low <= value <= high")
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
    documents = [point.to_json() for point in points]
    # A part of a result that is a table of its own has one line: it would have more of them than all the rest.
    on_a_line: list[str] = []
    for result in (document["result"] for document in documents):
        for name in _TABLES & result.keys():
            on_a_line.append(json.dumps(result[name], ensure_ascii=False))
            result[name] = f"\x00{len(on_a_line) - 1}"
    text = json.dumps(documents, indent=2, ensure_ascii=False)
    text = re.sub(r'"\\u0000(\d+)"', lambda found: on_a_line[int(found[1])], text)
    text = plain_numbers(text)
    parse_points(json.loads(text), path.name)
    write_text(path, text + "\n", sync=True)
