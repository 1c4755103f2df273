"""Add records to a user's price file; what is there stays, comments included."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from outlay.errors import MoneyError
from outlay.money.amounts import Price, read_price_file, write_usd
from outlay.money.prices.tokens import KINDS, TIERS, TOKEN_UNIT, shifted, token_item
from outlay.storage.files import write_text
from outlay.text.text_file import read_text

_TABLE = re.compile(r"[ \t]*\[\[\s*price\s*\]\]")
_EMPTY = re.compile(r"\s*(#.*)?")


@dataclass(frozen=True, slots=True)
class Additions:
    """What came of adding records: those written, and those that the file had at the same price, which were left alone."""

    written: tuple[Price, ...]
    kept: tuple[Price, ...]


def add_records(
    path: Path, models: Sequence[str], records: Sequence[Price], source: str, *, replace: bool
) -> Additions:
    """Add records of prices of tokens to a price file, made where there is none.

    Args:
        path: the file.
        models: names that the records stand under.
        records: prices per 1000 tokens; written per 1M tokens.
        source: beginning of the sources of records that may be replaced; those of others are a user's own.
        replace: take out the earlier records of these models and of that source first.

    Raises:
        MoneyError: a file that cannot be read, has another price of an item, or would not be whole afterwards.
        StoreError: the file cannot be written.
    """
    text = read_text(path) if path.exists() else ""
    known = read_price_file(path) if _says_anything(text) else {}
    ours = {token_item(name, kind, tier) for name in models for kind in KINDS for tier in TIERS}
    old = {item for item in ours & set(known) if known[item].source.startswith(f"{source} ")} if replace else set()
    kept: list[Price] = []
    for record in records:
        there = known.get(record.item)
        if there is not None and record.item not in old:
            _check_same(path, there, record, source)
            kept.append(there)
    written = [record for record in records if record.item in old or record.item not in known]
    if written or old:
        write_text(path, _edited(path, text, old, [_table_of(record) for record in written]))
    return Additions(tuple(written), tuple(kept))


def _says_anything(text: str) -> bool:
    return not all(_EMPTY.fullmatch(line) for line in text.splitlines())


def _check_same(path: Path, there: Price, record: Price, source: str) -> None:
    if (there.unit, there.usd) != (record.unit, record.usd):
        if there.source.startswith(f"{source} "):
            way_out = "give --replace to replace it"
        else:
            way_out = "that record is your own: remove it, or write into another file"
        before, now = write_usd(there.usd), write_usd(record.usd)
        raise MoneyError(f"{path} has {record.item!r} at ${before} per {there.unit}, not ${now}; {way_out}")


def _edited(path: Path, text: str, old: set[str], tables: Sequence[str]) -> str:
    """Return a text without the tables of the ``old`` items and with ``tables`` at its end. Raises MoneyError."""
    left = _without(text, _tables(text), old)
    parts = [left, *tables] if left.strip() else tables
    new = "\n".join(parts)
    expected = [table for table in _tables(text) if table["item"] not in old] + _tables("\n".join(tables))
    if _tables(new) != expected:
        raise MoneyError(
            f"{path} is written in a way that no [[price]] tables can be added to; write into another file"
        )
    return new.replace("\n", "\r\n") if "\r\n" in text else new


def _tables(text: str) -> list[dict[str, Any]]:
    """Return the price tables of a text as they are written; none of one that is no TOML."""
    try:
        tables: list[dict[str, Any]] = tomllib.loads(text, parse_float=Decimal).get("price", [])
    except (ValueError, RecursionError, InvalidOperation):
        return []
    return tables


def _without(text: str, raw: Sequence[dict[str, Any]], items: set[str]) -> str:
    """Return a text, with plain ends of lines, without the tables of some items; comments behind a table stay."""
    lines = text.replace("\r\n", "\n").split("\n")
    starts = [number for number, line in enumerate(lines) if _TABLE.match(line)]
    dropped: set[int] = set()
    if len(starts) == len(raw):
        for start, end, table in zip(starts, [*starts, len(lines)][1:], raw, strict=True):
            if table["item"] in items:
                last = max(number for number in range(start, end) if not _EMPTY.fullmatch(lines[number]))
                # The blank line before a table goes with it.
                first = start - 1 if start and not lines[start - 1].strip() else start
                dropped |= set(range(first, last + 1))
    left = "\n".join(line for number, line in enumerate(lines) if number not in dropped)
    return left if not left.strip() or left.endswith("\n") else left + "\n"


def _table_of(price: Price) -> str:
    """Return a record in TOML, by the million tokens, as providers print prices."""
    unit, usd = ("1M tokens", shifted(price.usd, 3)) if price.unit == TOKEN_UNIT else (price.unit, price.usd)
    texts = {"item": price.item, "unit": unit, "usd": write_usd(usd), "source": price.source}
    lines = ["[[price]]", *(f"{key} = {_quoted(value)}" for key, value in texts.items())]
    lines += [] if price.checked is None else [f"checked = {price.checked.isoformat()}"]
    lines += [f"note = {_quoted(price.note)}"] if price.note else []
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
