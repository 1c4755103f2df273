"""Whatever bytes a file holds: a reader gives rows, or one line that says what is wrong. No traceback, no hang."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlay.errors import OutlayError
from outlay.models.sizes import load_sizes
from outlay.money.amounts import PriceBook
from outlay.money.machines import load_machines
from outlay.standalone.logprob_formats import read_record
from outlay.study.grid import load_study
from outlay.tasks.loading import load_data
from outlay.tasks.readers import SUFFIXES, read_file, stream_file
from outlay.tasks.sources import DataFile
from outlay.tasks.task import load_task
from outlay.text.delimited import read_delimited
from outlay.text.text_file import read_text

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

PIECES = st.sampled_from(
    [
        *('{"message": "a", "label": "pos"}', '{"message":', '"', '""', "'", "\\ud800", "\\u0000", "NaN", "-Infinity"),
        *(
            "[",
            "]",
            "{",
            "}",
            ",",
            ";",
            "\t",
            "|",
            "\n",
            "\r",
            "\r\n",
            "\x00",
            "\ufeff",
            "\u2028",
            "é",
            "e\u0301",
            "😀",
        ),
        *(
            "message,label",
            "message\tlabel",
            "a,b",
            "<<: *a",
            "&a",
            "*a",
            "- ",
            "? ",
            ": ",
            "!!python/name:x ",
            "#",
            "---",
        ),
        *("labels: [yes, no]", "name: x", "text: '{a}'", "010", "1.10", "12:30", "9" * 5000, "~", "null", "true", "="),
        *("1e999", "[[price]]", 'item = "x"', "usd = 1", "[machine]", "x = ", "inf", "2024-05-31"),
        *("[" * 3000, "{a: " * 300, "- " * 300),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join)
BYTES = (
    st.binary(max_size=60)
    | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | TEXTS.map(lambda text: text.encode("utf-16", "surrogatepass"))
)


def one_line_or_nothing(read: Callable[[], Any]) -> bool:
    """Whether it was read; what is refused is refused in one line."""
    said = None
    try:
        read()
    except OutlayError as error:
        said = str(error)
    assert said is None or (said and "\n" not in said and "\r" not in said)
    return said is None


NAMES = [*(f"t{suffix}" for suffix in SUFFIXES[:-1]), *(f"t{suffix}.gz" for suffix in SUFFIXES[:-1]), "t.CSV", "t.xlsx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(content=BYTES, packed=st.booleans())
def test_files_of_rows(folder: Path, name: str, content: bytes, packed: bool) -> None:
    path = folder / name
    path.write_bytes(gzip.compress(content) if packed and name.endswith(".gz") else content)
    for delimiter in (None, ";"):
        one_line_or_nothing(lambda d=delimiter: read_file(DataFile(file=name, delimiter=d), path))  # type: ignore[misc]
    one_line_or_nothing(lambda: list(stream_file(path)))
    one_line_or_nothing(lambda: read_text(path))


@FEW
@given(content=TEXTS | BYTES)
def test_files_of_keys_and_values(folder: Path, content: str | bytes) -> None:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    for name, load in (
        ("task.yaml", load_task),
        ("study.yaml", load_study),
        ("sizes.yaml", lambda path: load_sizes([path])),
        ("prices.toml", lambda path: PriceBook.load([path])),
        ("machines.toml", lambda path: load_machines([path])),
    ):
        (folder / name).write_bytes(data)
        one_line_or_nothing(lambda load=load, name=name: load(folder / name))  # type: ignore[misc]


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["pos", "neg", "1.0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["message", "label", "text", "x"]), VALUES, max_size=4), max_size=4)


@FEW
@given(
    rows=ROWS,
    labels=st.lists(VALUES, max_size=3),
    more=st.dictionaries(st.sampled_from(["where", "label_names", "n"]), VALUES),
)
def test_rows_of_any_values_under_a_task(
    folder: Path, rows: list[dict[str, Any]], labels: list[Any], more: dict[str, Any]
) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text('{"message": "of test", "label": "pos"}\n')
    task = {
        **{"name": "any", "text": "{message}", "price_item": "label/x", "dev": "none"},
        "labels": labels or ["pos", "neg"],
        "data": {
            "train": {"file": "train.jsonl", "target": "label", **more},
            "test": {"file": "test.jsonl", "target": "label"},
        },
        "pool": [{"name": "train", "split": "train"}],
    }
    (folder / "any.yaml").write_text(json.dumps(task))
    if one_line_or_nothing(lambda: load_data(load_task(folder / "any.yaml"))):
        train = load_data(load_task(folder / "any.yaml")).train
        assert all(
            isinstance(row["message"], str | int | float)
            for row in rows
            if more.get("n") is None and len(train) == len(rows)
        )


@FEW
@given(
    columns=st.dictionaries(
        st.sampled_from(["source", "answer", "choices", "outputs", "logprobs", "content", "response"]), VALUES
    )
)
def test_records_of_any_values(columns: dict[str, Any]) -> None:
    one_line_or_nothing(lambda: read_record(columns, "f:1", source_column="source", target_column=None))


CELLS = st.text(alphabet=st.sampled_from("ab \"',;\t|é\n\r"), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=6),
    mark=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_well_quoted_text_is_read_as_it_was_written(rows: list[list[str]], mark: str, quoting: int) -> None:
    """But for what nobody can tell: with tabs, fields over several lines each of which is a whole row."""
    out = io.StringIO()
    csv.writer(out, delimiter=mark, quoting=quoting).writerows([["head", "other"], *rows])  # type: ignore[arg-type]
    text = out.getvalue()
    found = [values for _, values in read_delimited(text, mark).rows]
    wanted = [row for row in rows if any(cell.strip() for cell in row)]
    lines = [line for line in io.StringIO(text, newline="") if any(cell.strip() for cell in line.split(mark))]
    empty = [line for line in lines if all(cell.strip() in ("", '""') for cell in line.split(mark))]
    could_be_unquoted = all(line.count(mark) == 1 for line in lines)
    if mark == "\t" and could_be_unquoted:
        assert len(found) in (len(lines) - 1, len(lines) - 1 - len(empty))
    else:
        assert found == wanted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.lists(st.text(alphabet="ab \"',;é", min_size=1, max_size=6), min_size=2, max_size=2), min_size=1, max_size=6
    )
)
def test_unquoted_text_with_tabs_loses_no_row(rows: list[list[str]]) -> None:
    """Whatever quotes stand in it: as many rows as lines, and each text as it stands or without quotes around it."""
    rows = [["x" + left, right] for left, right in rows]
    text = "".join("\t".join(row) + "\n" for row in [["head", "other"], *rows])
    found = [values for _, values in read_delimited(text, "\t").rows]
    assert len(found) == len(rows)
    for read, written in zip(found, rows, strict=True):
        assert read[0] == written[0]
        assert read[1] in (written[1], written[1][1:-1].replace('""', '"'))


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_parquet_file(tmp_path: Path, seed: int) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, random_ = tmp_path / "t.parquet", random.Random(seed)
    parquet.write_table(
        arrow.table({"message": [f"text {i}" for i in range(50)], "label": [i % 2 for i in range(50)]}), path
    )
    whole = path.read_bytes()
    for _ in range(10):
        harmed = bytearray(whole[: random_.randrange(len(whole))] if random_.random() < 0.3 else whole)
        for _ in range(random_.randrange(1, 4)):
            if harmed:
                harmed[random_.randrange(len(harmed))] = random_.randrange(256)
        path.write_bytes(bytes(harmed))
        one_line_or_nothing(lambda: read_file(DataFile(file="t.parquet"), path))
        one_line_or_nothing(lambda: list(stream_file(path)))
