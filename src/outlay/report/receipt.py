"""The receipt of a run: every dollar in the order it was spent, as text or JSON.

The head and count at the end are those of the last entry of the run: an anchor that `Ledger.verify` accepts and that does not
change as the ledger grows, so that a repeated run prints the same receipt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from outlay.engine.point import LabelSource
from outlay.engine.run_dir import RunDir, Timing
from outlay.errors import HoldError
from outlay.export.model_dir import MODEL_DIR, handed_over
from outlay.hardware.precision import precision_name, ratio_words
from outlay.money.amounts import DOLLAR_UNIT, format_usd
from outlay.money.ledger import Anchor, Entry, Ledger
from outlay.report.values import ABSENT
from outlay.text.display import left, right, visible, width, wrap

WIDTH = 100
N_TRAINED_ROLES = 3
"""Number of trained roles (teacher, student, distil); with a precision of each, the run's own applies to none."""
_SHOWN = ("topup", "settle", "overrun", "lost", "cancel")
_WORDS = {"topup": "budget topped up", "overrun": "overrun", "lost": "lost work", "cancel": "run cancelled"}
_HEADINGS = ("what", "item", "quantity and price", "charge", "cash", "left")
_SECONDS = ("what", "forecast by", "forecast s", "measured s")
_HOUR = "hour"
"""Unit of compute in the ledger; nothing else is sold by the hour."""
_N_TEXT_COLUMNS = 2  # text wraps, numbers never do


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """A line of a receipt: an entry that moved money or ended the run; ``left_micros`` is the charge left after it."""

    seq: int
    kind: str
    what: str
    item: str
    quantity: Fraction
    unit: str
    unit_usd: str
    charge_micros: int
    cash_micros: int
    left_micros: int
    at: str


@dataclass(frozen=True, slots=True)
class Compute:
    """Charged seconds of the compute steps that a run executed, and their measured seconds on this machine.

    ``charged_seconds``: arithmetic alone, by the flops clock of the charged machine; ``measured_seconds``: wall time;
    ``working_seconds``: the part of the wall time inside batches. ``uncharged_seconds``: the rest (loading, tokenising,
    saving), which is paid in cash alone, ``uncharged_cash_micros``. The last three are ``None`` where the batches of a step were
    not timed.
    """

    charged_seconds: float
    charge_micros: int
    measured_seconds: float
    cash_micros: int
    working_seconds: float | None
    uncharged_seconds: float | None
    uncharged_cash_micros: int | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The money of a run in micro-dollars; totals include overruns, and the cash total lost work as well.

    ``timings``: wall seconds of the compute steps, forecast and measured; they are not money. ``compute``: charged against
    measured seconds; ``None`` where no step was computed in this execution.
    """

    run_id: str
    opened_at: str
    opened_with_micros: int
    budget_micros: int
    lines: tuple[ReceiptLine, ...]
    charge_micros: int
    cash_micros: int
    lost_micros: int
    overrun_charge_micros: int
    overrun_cash_micros: int
    held_charge_micros: int
    held_cash_micros: int
    left_charge_micros: int
    left_cash_micros: int
    cancelled: bool
    anchor: Anchor
    timings: tuple[Timing, ...] = ()
    compute: Compute | None = None
    notes: tuple[str, ...] = ()
    """Warnings about the score of the run, see `outlay.metrics.degenerate`."""
    precision: dict[str, Any] | None = None
    """Precision of the run and speed of the machine in bf16; ``None`` for a run of an older version."""
    ece: float | None = None
    """Expected calibration error of the final model on the test split, 0-100; ``None`` for one without probabilities."""
    about: tuple[str, ...] = ()
    """What was run, with which models, and what it scored, a line each; none for a run that is not finished."""
    model: str | None = None
    """Folder of the model that was handed over from this run; ``None`` without one."""
    latency_ms: float | None = None
    """Wall milliseconds of one answer by the final model, a row at a time; ``None`` where they were not measured."""


def receipt(ledger: Ledger, run_id: str) -> Receipt:
    """Return the receipt of a run, computed from its ledger entries.

    Raises:
        HoldError: the run is not in the ledger.
    """
    entries = ledger.entries(run_id)
    if not entries:
        known = ", ".join(repr(name) for name in ledger.run_ids()) or "none"
        raise HoldError(f"run {run_id!r} is not in {ledger.path}; its runs: {known}")
    files = RunDir.of(ledger.path.parent, run_id)
    closed = {entry.hold_seq for entry in entries if entry.kind in ("settle", "release")}
    budget, _ = _totals(entries, "open", "topup")
    charge, cash = _totals(entries, "settle", "overrun", "lost")
    overrun_charge, overrun_cash = _totals(entries, "overrun")
    held_charge, held_cash = _totals([entry for entry in entries if entry.seq not in closed], "hold")
    timings = tuple(files.timings())
    return Receipt(
        run_id=run_id,
        opened_at=entries[0].at,
        opened_with_micros=entries[0].charge_micros,
        budget_micros=budget,
        lines=_lines(entries),
        charge_micros=charge,
        cash_micros=cash,
        lost_micros=_totals(entries, "lost")[1],
        overrun_charge_micros=overrun_charge,
        overrun_cash_micros=overrun_cash,
        held_charge_micros=held_charge,
        held_cash_micros=held_cash,
        left_charge_micros=max(0, budget - charge - held_charge),
        left_cash_micros=max(0, budget - cash - held_cash),
        cancelled=any(entry.kind == "cancel" for entry in entries),
        anchor=Anchor(entries[-1].hash, entries[-1].seq),
        timings=timings,
        compute=_compute(entries, timings),
        notes=files.notes(),
        precision=files.precision(),
        ece=files.calibration_error(),
        about=about_lines(point["request"], point["result"]) if (point := files.point()) else (),
        model=_handed_over(ledger.path.parent / MODEL_DIR, run_id),
        latency_ms=files.latency_ms(),
    )


def render_text(receipt: Receipt) -> str:
    """Return a receipt as aligned plain text, at most `WIDTH` columns wide where the amounts allow it."""
    opened, charge, cash = map(format_usd, (receipt.opened_with_micros, receipt.charge_micros, receipt.cash_micros))
    left = format_usd(max(0, receipt.budget_micros - receipt.charge_micros))
    budget, total = ("budget", "", "", "", "", opened), ("total", "", "", charge, cash, left)
    rows = [_HEADINGS, budget, *(_row(line) for line in _merge_blocks(receipt.lines)), total]
    title = f"Receipt of run {_one_line(receipt.run_id)}"
    about = [*receipt.about, *([] if receipt.model is None else [f"model: {receipt.model}"])]
    told = [wrapped for line in about for wrapped in wrap(_one_line(line), WIDTH)]
    head = [*wrap(title, WIDTH), f"opened {receipt.opened_at[:10]} {receipt.opened_at[11:16]} UTC", *told, ""]
    seconds = [*_table_lines([_SECONDS, *_seconds_rows(receipt.timings)]), ""] if receipt.timings else []
    summary = [wrapped for line in _summary(receipt) for wrapped in wrap(line, WIDTH)]
    return "\n".join([*head, *_table_lines(rows), "", *seconds, *summary]) + "\n"


def about_lines(request: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return lines on the run of a point, given as JSON: task and strategy; models with their methods; dev labels and scores."""
    methods = [method for _, method in sorted((request.get("methods") or {}).items(), reverse=True)] or ["full"]
    teacher = "" if request["teacher"] is None else f"teacher {request['teacher']} by {methods[0]}; "
    fixed = "" if request["n_initial"] is None else f", N = {request['n_initial']:,}"
    lines = [
        f"{request['task']}: {request['strategy']}{fixed}, seed {request['seed']}",
        f"{teacher}student {request['student']} by {methods[-1]}",
    ]
    if result["n_dev"]:
        source = "of the seed's fold" if request["dev"] == "folds" else request["dev"]
        lines.append(f"dev labels: {result['n_dev']:,} {source}")
    lines += [f"labels: {LabelSource(**each).line()}" for each in result.get("label_sources", ())]
    if (test := result["test"]) is None:
        return (*lines, f"no score: {result['reason']}")
    dev = "" if result["dev"] is None else f"; dev score {result['dev']:.1f}"
    name, score = next((name, each) for name, each in result["scores"].items() if each["value"] == test)
    lines.append(f"test score {test:.1f} ({name}, 95 %: {score['low']:.1f} to {score['high']:.1f}){dev}")
    if (taught := result.get("teacher_test")) is not None:
        lines.append(
            f"the teacher's own test score {taught['value']:.1f} (95 %: {taught['low']:.1f} to {taught['high']:.1f})"
        )
    return tuple(lines)


def _handed_over(folder: Path, run_id: str) -> str | None:
    """Return the folder of the model that was handed over, where it is that of a run."""
    return str(folder) if (handed_over(folder) or {}).get("run") == run_id else None


def to_json(receipt: Receipt) -> str:
    """Return a receipt as JSON: amounts in micro-dollars, quantities as exact fractions, keys in a fixed order."""
    return json.dumps(asdict(receipt), indent=2, ensure_ascii=False, default=str) + "\n"


def _totals(entries: Sequence[Entry], *kinds: str) -> tuple[int, int]:
    """Return the charge and the cash of the entries of some kinds, in micro-dollars."""
    moved = [entry for entry in entries if entry.kind in kinds]
    return sum(entry.charge_micros for entry in moved), sum(entry.cash_micros for entry in moved)


def _compute(entries: Sequence[Entry], timings: Sequence[Timing]) -> Compute | None:
    """Return charged and measured seconds of the settled compute steps of this execution; None without such steps."""
    by_key = {each.key: each for each in timings if each.measured is not None}
    made = [entry for entry in entries if entry.kind == "settle" and entry.unit == _HOUR and entry.key in by_key]
    if not made:
        return None
    charged = 3600 * sum((entry.quantity for entry in made if Fraction(entry.unit_usd) > 0), Fraction(0))
    measured = sum(by_key[entry.key].measured or 0.0 for entry in made)
    charge_micros, cash_micros = _totals(made, "settle")
    working: float | None = 0.0
    rest_micros = 0.0
    for entry in made:
        timing = by_key[entry.key]
        took, worked = timing.measured or 0.0, timing.working
        working = None if working is None or worked is None else working + min(worked, took)
        rest_micros += entry.cash_micros * (1 - min(worked or 0.0, took) / took) if took > 0 else 0.0
    return Compute(
        charged_seconds=float(charged),
        charge_micros=charge_micros,
        measured_seconds=measured,
        cash_micros=cash_micros,
        working_seconds=working,
        uncharged_seconds=None if working is None else measured - working,
        uncharged_cash_micros=None if working is None else round(rest_micros),
    )


def _lines(entries: list[Entry]) -> tuple[ReceiptLine, ...]:
    left = 0
    lines = []
    for entry in entries:
        if entry.kind in ("open", "topup"):
            left += entry.charge_micros
        elif entry.kind in ("settle", "overrun"):
            left -= entry.charge_micros
        if entry.kind in _SHOWN:
            # A top-up raises the budget and moves no money: its amount appears in the charge left.
            moved = (0, 0) if entry.kind == "topup" else (entry.charge_micros, entry.cash_micros)
            lines.append(
                ReceiptLine(
                    seq=entry.seq,
                    kind=entry.kind,
                    what=_what(entry),
                    item=entry.item,
                    quantity=entry.quantity,
                    unit=entry.unit,
                    unit_usd=entry.unit_usd,
                    charge_micros=moved[0],
                    cash_micros=moved[1],
                    left_micros=max(0, left),
                    at=entry.at,
                )
            )
    return tuple(lines)


def _what(entry: Entry) -> str:
    note = _one_line(entry.note)
    if entry.kind == "settle":
        return note or _one_line(entry.key)
    if entry.kind == "topup":
        return f"{_WORDS['topup']} by {format_usd(entry.charge_micros)}"
    return f"{_WORDS[entry.kind]}: {note}" if note else _WORDS[entry.kind]


def _merge_blocks(lines: tuple[ReceiptLine, ...]) -> list[ReceiptLine]:
    """Merge consecutive purchases of one item at one price, such as the blocks of a teacher pass, into one line."""

    def kind_of_purchase(line: ReceiptLine) -> object:
        return (line.what, line.item, line.unit, line.unit_usd) if line.kind == "settle" else line.seq

    merged = []
    for _, alike in groupby(lines, key=kind_of_purchase):
        blocks = list(alike)
        line = blocks[-1]
        if len(blocks) > 1:
            line = replace(
                line,
                what=f"{line.what}, {len(blocks)} blocks",
                quantity=sum((each.quantity for each in blocks), Fraction(0)),
                charge_micros=sum(each.charge_micros for each in blocks),
                cash_micros=sum(each.cash_micros for each in blocks),
            )
        merged.append(line)
    return merged


def _row(line: ReceiptLine) -> tuple[str, ...]:
    bought = line.kind == "settle"
    moved = line.kind in ("settle", "overrun", "lost")
    return (
        line.what,
        _one_line(line.item),
        _bought(line) if bought else "",
        format_usd(line.charge_micros) if moved else "",
        format_usd(line.cash_micros) if moved else "",
        format_usd(line.left_micros),
    )


def _bought(line: ReceiptLine) -> str:
    """Return quantity and unit price as text; of tokens, which are priced apart, their dollars: ``$0.0123451 of tokens``."""
    if line.unit != DOLLAR_UNIT:
        return f"{_amount(line.quantity, _one_line(line.unit))} at {_unit_price(line.unit_usd)}"
    return f"{_dollars(line.quantity)} of tokens" + ("" if Fraction(line.unit_usd) else ", paid before")


def _dollars(quantity: Fraction) -> str:
    """Return dollars with at most 9 decimals, more where two significant digits take them."""
    digits = 9 if quantity == 0 else max(9, 1 - math.floor(math.log10(quantity)))
    return _unit_price(f"{float(quantity):.{digits}f}")


def _amount(quantity: Fraction, unit: str) -> str:
    """Return a quantity as text: ``1,000 labels``, ``0.5213 hours``, ``2.3 × 1000 tokens``; fractions to 4 significant digits."""
    if quantity.denominator == 1:
        number = f"{quantity.numerator:,}"
    else:
        digits = max(0, 3 - math.floor(math.log10(quantity)))
        number = f"{float(quantity):,.{digits}f}"
        number = number.rstrip("0").rstrip(".") if "." in number else number
    if unit[:1].isdigit():
        return f"{number} × {unit}"
    return f"{number} {unit}" if quantity == 1 else f"{number} {unit}s"


def _summary(receipt: Receipt) -> list[str]:
    lines = [
        f"charged {format_usd(receipt.charge_micros)} of {format_usd(receipt.budget_micros)}"
        f" (labels, and the arithmetic of the work), {format_usd(receipt.left_charge_micros)} left",
        f"paid {format_usd(receipt.cash_micros)} in cash (what left the bank),"
        f" {format_usd(receipt.left_cash_micros)} left",
    ]
    if receipt.compute is not None:
        lines.append(_compute_words(receipt.compute))
    if any(each.measured is not None and each.predicted is None for each in receipt.timings):
        lines.append("no forecast of seconds: `outlay machine calibrate` measures this machine")
    if receipt.lost_micros:
        lines.append(f"lost {format_usd(receipt.lost_micros)} of that cash on work that had to be redone")
    if receipt.overrun_charge_micros or receipt.overrun_cash_micros:
        charge, cash = format_usd(receipt.overrun_charge_micros), format_usd(receipt.overrun_cash_micros)
        lines.append(f"overran its holds by {charge} of charge and {cash} of cash")
    if receipt.held_charge_micros or receipt.held_cash_micros:
        charge, cash = format_usd(receipt.held_charge_micros), format_usd(receipt.held_cash_micros)
        lines.append(f"still holds {charge} of charge and {cash} of cash for unfinished work")
    if receipt.cancelled:
        lines.append("cancelled: this run can spend nothing more")
    lines += [] if receipt.precision is None else [_precision_words(receipt.precision)]
    lines += _model_lines(receipt)
    lines += [f"note: {_one_line(note)}" for note in receipt.notes]
    return [*lines, f"entry {receipt.anchor.count}, head {receipt.anchor.head}"]


def _model_lines(receipt: Receipt) -> list[str]:
    """Return the line about the final model: its calibration and its milliseconds a row, as far as they are known."""
    facts = [] if receipt.ece is None else [f"calibration error (ECE) {receipt.ece:.1f} of 100 on the test split"]
    facts += [] if receipt.latency_ms is None else [f"{receipt.latency_ms:,.3g} ms a row, one row at a time"]
    return [f"the final model: {'; '.join(facts)}"] if facts else []


def _precision_words(facts: dict[str, Any]) -> str:
    """Return the line about precision: of the run or its roles, and the speed of its machine in bf16 where it is known."""
    roles = [f"{role} in {precision_name(name)}" for role, name in facts["roles"].items()]
    if len(roles) < N_TRAINED_ROLES:
        roles = ["in " + precision_name(facts["precision"]) + (" as asked" if facts["asked"] else ""), *roles]
    why = ""
    if facts["bf16_ratio"] is not None:
        why += f"; bf16 is {ratio_words(facts['bf16_ratio'])} times as fast as float32 on {visible(facts['device'])}"
    return f"computed: {', '.join(roles)}{why}"


def _compute_words(compute: Compute) -> str:
    """Return the line about loading, tokenising and saving, which the charge of compute leaves out."""
    counts = f"the charge counts arithmetic only: {_seconds(compute.charged_seconds)} by the flops clock"
    if compute.working_seconds is None or compute.uncharged_seconds is None or compute.uncharged_cash_micros is None:
        took = f"{_seconds(compute.measured_seconds)}, {format_usd(compute.cash_micros)}"
        return f"{counts}. It took {took} in cash here, with loading, tokenising and saving, which are in cash alone"
    rest = f"{_seconds(compute.uncharged_seconds)}, {format_usd(compute.uncharged_cash_micros)}"
    return (
        f"{counts}, {_seconds(compute.working_seconds)} here; loading, tokenising and saving took {rest}, "
        "and are in cash alone"
    )


def _seconds(seconds: float) -> str:
    """Return seconds as text, ``29.8 s``; below 1 with two significant digits, so that few seconds do not read as none."""
    return f"{seconds:,.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"


def _unit_price(unit_usd: str) -> str:
    """Return a unit price with all its decimals, at least 2."""
    whole, _, decimals = unit_usd.partition(".")
    return f"${int(whole):,}.{decimals.rstrip('0').ljust(2, '0')}"


def _seconds_rows(timings: Sequence[Timing]) -> list[tuple[str, ...]]:
    """Return rows of forecast and measured seconds, one per step or teacher pass, and a row of totals of this execution.

    The forecast of a row is a dash where a step has none.
    """
    alike: dict[tuple[str, str], list[Timing]] = {}
    for each in timings:
        by = "reused" if each.is_reused else each.by or ABSENT
        alike.setdefault((each.what, by), []).append(each)
    rows = [
        (_one_line(what if len(each) == 1 else f"{what}, {len(each)} blocks"), by, *_sums(each))
        for (what, by), each in alike.items()
    ]
    return [*rows, ("total", "", *_sums([each for each in timings if not each.is_reused]))]


def _sums(timings: Sequence[Timing]) -> tuple[str, str]:
    if not timings or timings[0].is_reused:
        return "", ""
    predicted = [each.predicted for each in timings if each.predicted is not None]
    measured = sum(each.measured or 0.0 for each in timings)
    # A sum over some of the steps would be mistaken for the sum over all.
    return f"{sum(predicted):,.1f}" if len(predicted) == len(timings) else ABSENT, f"{measured:,.1f}"


def _table_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table: headings, a rule, rows, a rule, the total."""
    widths = _fit([max(width(row[column]) for row in rows) for column in range(len(rows[0]))])
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    drawn = [_aligned(row, widths) for row in rows]
    return [drawn[0], rule, *drawn[1:-1], rule, drawn[-1]]


def _fit(widths: list[int]) -> list[int]:
    """Shrink the two columns of words, the wider one first, until the table fits into `WIDTH`."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths[:_N_TEXT_COLUMNS]) > 10:
        widths[0 if widths[0] >= widths[1] else 1] -= 1
    return widths


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Return a row as text over as many lines as its words need, with its numbers on the first."""
    words = [wrap(cell, n_cells) for cell, n_cells in zip(row, widths[:_N_TEXT_COLUMNS], strict=False)]
    numbers = [[cell] for cell in row[_N_TEXT_COLUMNS:]]
    lines = []
    for cells in zip_longest(*words, *numbers, fillvalue=""):
        pairs = list(zip(cells, widths, strict=True))
        padded = [left(*pair) for pair in pairs[:_N_TEXT_COLUMNS]] + [right(*pair) for pair in pairs[_N_TEXT_COLUMNS:]]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Return a user's text on one line, with terminal control characters escaped."""
    return visible(" ".join(text.split()))
