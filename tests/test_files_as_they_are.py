"""Files as people have them: what the readers make of them, and in which words they refuse."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlay.cli.common import parse_labels, say_notes
from outlay.cli.model_commands import _file_corpus
from outlay.engine.prepare import RunBuilder
from outlay.errors import DataError, MissingData, MoneyError, OutlayError, TaskFileError, UnknownModel
from outlay.models.sizes import load_sizes
from outlay.money.amounts import PriceBook
from outlay.spec import named_class
from outlay.tasks.loading import load_data
from outlay.tasks.readers import SourceRow, read_file
from outlay.tasks.sources import DataFile
from outlay.tasks.statistics import profile
from outlay.tasks.task import Task, load_task
from outlay.text.delimited import read_delimited
from outlay.text.entities import Entity, parse_entities, render_entities, unlabelled
from outlay.text.json_text import BadJson, parse_json
from outlay.text.legible import label_problem, listed, named
from outlay.text.yaml_text import BadYaml, parse_yaml, plain
from tests.test_cli import Ran, outlay, refused

TASK: dict[str, Any] = {
    "name": "mail",
    "text": "{message}",
    "labels": ["pos", "neg"],
    "price_item": "label/multipit_id",
    "dev": "none",
    "data": {
        "train": {"file": "train.jsonl", "target": "label"},
        "test": {"file": "test.jsonl", "target": "label"},
    },
    "pool": [{"name": "train", "split": "train"}],
}


def write_task(folder: Path, train: str | bytes, suffix: str = ".jsonl", **changes: Any) -> Path:
    """A task beside its files: ``train`` and a test split of JSON lines."""
    labels = changes.get("labels", TASK["labels"])
    test = "".join(json.dumps({"message": f"row {i} of test", "label": label}) + "\n" for i, label in enumerate(labels))
    (folder / "test.jsonl").write_text(test, encoding="utf-8")
    data = train.encode() if isinstance(train, str) else train
    (folder / f"train{suffix}").write_bytes(gzip.compress(data) if suffix.lower().endswith(".gz") else data)
    content = json.loads(json.dumps(TASK)) | changes
    content["data"]["train"] |= {"file": f"train{suffix}"} | changes.pop("source", {})
    content.pop("source", None)
    (folder / "task.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return folder / "task.yaml"


def train_rows(
    folder: Path, train: str | bytes, suffix: str = ".jsonl", **changes: Any
) -> list[tuple[str, str | None]]:
    data = load_data(load_task(write_task(folder, train, suffix, **changes)))
    return [(example.text, example.label) for example in data.train]


def said(folder: Path, train: str | bytes, suffix: str = ".jsonl", **changes: Any) -> str:
    """The one line by which a file is refused."""
    with pytest.raises(OutlayError) as caught:
        load_data(load_task(write_task(folder, train, suffix, **changes)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(folder: Path, name: str, content: str | bytes, delimiter: str | None = None) -> list[dict[str, Any]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [dict(row.columns) for row in read_file(DataFile(file=name, delimiter=delimiter), path).rows]


# --- cases, each with its right value --------------------------------------------------------------------------------


def test_case_tsv_quote_merge(tmp_path: Path) -> None:
    lines = [
        '"so called service\tneg',
        "it was wonderful\tpos",
        "I loved it\tpos",
        'the end of the story"\tneg',
        "plain\tpos",
    ]
    task = write_task(tmp_path, "message\tlabel\n" + "".join(f"{line}\n" for line in lines), ".tsv")
    ran = outlay("task", "check", task)
    assert ran.code == 0
    assert "pos 3 · neg 2" in ran.out
    assert re.search(r"note: train\.tsv: each line is a row and quotes are characters \(line 2 ", ran.out)
    assert train_rows(tmp_path, (tmp_path / "train.tsv").read_bytes(), ".tsv")[0][0] == '"so called service'


def test_case_csv_field_140k(tmp_path: Path) -> None:
    text = ("x" * 69_999 + "\r\n") * 2
    train = f'message,label\r\nshort,neg\r\n"{text}",pos\r\n'
    assert train_rows(tmp_path, train, ".csv") == [("short", "neg"), (text, "pos")]
    assert train_rows(tmp_path, train.replace(",", "\t"), ".tsv")[1][0] == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null"])
def test_case_json_nan_text(tmp_path: Path, value: str) -> None:
    rows = [f'{{"message": {value}, "label": "pos"}}', '{"message": "fine", "label": "neg"}']
    message = said(tmp_path, "\n".join([*rows, rows[0]]) + "\n")
    assert re.match(rf"train\.jsonl:1 .*'message'.*{value}.*1 more of 3 rows: train\.jsonl:3", message)


@pytest.mark.parametrize("name", ["said.json.gz", "said.jsonl.gz", "said.csv.gz", "said.txt.GZ"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "behind", "header", "plain", "latin"])
def test_case_json_gz_damaged(tmp_path: Path, name: str, harm: str) -> None:
    rows = "".join(json.dumps({"target": "pos", "prediction": f"neg {i * i}"}) + "\n" for i in range(300))
    packed = bytearray(gzip.compress(rows.encode(), mtime=0))
    if harm == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    damaged = {
        "flipped": bytes(packed),
        "cut": bytes(packed[: len(packed) // 2]),
        "behind": bytes(packed) + b"no gzip",
        "header": bytes(packed[:4]),
        "plain": rows.encode(),
        "latin": gzip.compress(rows.encode() + b"\xe9\n", mtime=0)[:-8],
    }[harm]
    (tmp_path / name).write_bytes(damaged)
    asked = ("--labels", "pos,neg", "--target-column", "target", "--out", tmp_path / "o")
    refused(
        outlay("evaluate", "--predictions", tmp_path / name, *asked),
        name,
        f"line {300 if harm == 'behind' else ''}",
    )


def test_a_first_line_of_any_length_is_read(tmp_path: Path) -> None:
    header = "x" * 140_000
    (tmp_path / "wide.csv").write_text(f"{header},b\n1,2\n")
    assert read_file(DataFile(file="wide.csv"), tmp_path / "wide.csv").rows[0].columns == {header: "1", "b": "2"}


def test_case_label_leading_space(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"message": f"aa {label}", "label": f" {label}"}) + "\n" for label in ("yes", "no"))
    task = write_task(tmp_path, rows, labels=[" yes", " no"])
    refused(outlay("task", "check", task), "labels: ' yes'", "a blank in front", '{" yes": "yes"}')
    # The way out that is named works.
    names = {" yes": "yes", " no": "no"}
    assert train_rows(tmp_path, rows, labels=["yes", "no"], source={"label_names": names}) == [
        ("aa yes", "yes"),
        ("aa no", "no"),
    ]


def test_case_label_trailing_blank_message(tmp_path: Path) -> None:
    task = write_task(tmp_path, "message,label\nhello there,pos \nfine text,neg\n", ".csv")
    refused(
        outlay("task", "check", task),
        *("train.csv:2", "'pos '", "a blank behind", "'pos', 'neg'", "`labels`"),
    )


def predictions(
    folder: Path, rows: list[dict[str, Any]], *options: str, name: str = "said.jsonl"
) -> tuple[Ran, dict[str, float]]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ran = outlay("evaluate", "--predictions", folder / name, *options, "--out", folder / "o")
    if ran.code:
        return ran, {}
    scores = json.loads((folder / "o" / "scores.json").read_text())["scores"]
    return ran, {key: value["value"] for key, value in scores.items()}


def test_case_float_coded_predictions(tmp_path: Path) -> None:
    rows = [{"target": "1", "prediction": 1.0}, {"target": 0.0, "prediction": "0"}, {"target": "0", "prediction": 0}]
    ran, scores = predictions(tmp_path, rows, "--labels", "0,1", "--target-column", "target")
    assert (scores["accuracy/published"], scores["accuracy/strict"]) == (100.0, 100.0)
    assert "1 prediction is a number such as 1.0, which is read as 1" in ran.out
    assert "1 gold answer is a number such as 0.0, which is read as 0" in ran.out


def test_no_answer_and_other_answers_are_counted(tmp_path: Path) -> None:
    said_ = [float("nan"), None, "maybe", "maybe", "0", "1", 2.5]
    rows = [{"gold": "1", "prediction": each} for each in said_]
    ran, scores = predictions(tmp_path, rows, "--labels", "0,1")
    assert re.search(r"5 of 7 .*no answer \(2\), 'maybe' \(2\), '2\.5' \(1\)", ran.out)
    assert scores["accuracy/strict"] == pytest.approx(100 / 7)


def test_case_cli_label_with_comma(tmp_path: Path) -> None:
    rows = [{"gold": "yes, partly", "prediction": "yes, partly"}, {"gold": "no", "prediction": "no"}]
    _, scores = predictions(tmp_path, rows, "--labels", "yes, partly", "--labels", "no")
    assert scores["accuracy/published"] == scores["accuracy/strict"] == 100.0
    ran, _ = predictions(tmp_path, rows, "--labels", "yes, partly, no")
    refused(ran, "'yes, partly'", "'yes', 'partly', 'no'")
    assert parse_labels(["a, b,,c "]) == ("a", "b", "c")
    assert parse_labels(["a, b", " c", ""]) == ("a, b", "c")
    assert parse_labels(None) == ()


# --- delimited text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a\tb\n"x\ty"\t1\n"p ""q"""\t2\n', [["x\ty", "1"], ['p "q"', "2"]]),
        ('a\tb\n"two\nlines"\t1\nz\t2\n', [["two\nlines", "1"], ["z", "2"]]),
        ('a\tb\nhe said "hi"\t1\n"all of it"\t2\n', [['he said "hi"', "1"], ['"all of it"', "2"]]),
        ('a\tb\n"all of it"\t1\nplain\t2\n', [["all of it", "1"], ["plain", "2"]]),
        ('a\tb\n5" pipe\t1\n6" pipe\t2\n', [['5" pipe', "1"], ['6" pipe', "2"]]),
        ('a\tb\n"open\t1\nnever closed\t2\n', [['"open', "1"], ["never closed", "2"]]),
        ('a\n"one\n two"\n', [['"one'], [' two"']]),
        ("a\tb\r\rx\t1\r\r\r", [["x", "1"]]),
        ("a\tb\r\nx\t1\r\n\t\r\n \n", [["x", "1"]]),
    ],
)
def test_tabs_with_quotes(text: str, rows: list[list[str]]) -> None:
    assert [values for _, values in read_delimited(text, "\t").rows] == rows


def test_the_line_that_decides_about_quotes_is_named() -> None:
    (note,) = read_delimited('a\tb\n"x"\t1\ny "z"\t2\n', "\t").notes
    assert "line 3" in note
    (note,) = read_delimited('a\tb\n"x"\t1\n', "\t").notes
    assert "taken off" in note
    assert read_delimited('a\tb\n5" x\t1\n', "\t").notes == ()


@pytest.mark.parametrize("n_columns", [2, 3])
@pytest.mark.parametrize("quoting", ["minimal", "all", "none"])
def test_what_the_csv_module_and_plain_joins_write_is_read_back(n_columns: int, quoting: str, tmp_path: Path) -> None:
    import csv
    import io

    values = ["plain", 'so "called"', "a, b; c", "ü", '"whole"', ""]
    if quoting != "none":
        values += ["two\nlines", "tab\there", '"', '"\n"']
    rows = [[values[(i + j) % len(values)] for j in range(n_columns - 1)] + ["x"] for i in range(len(values))]
    header = [f"c{i}" for i in range(n_columns)]
    for mark in "\t,;|":
        if quoting == "none":
            if mark != "\t":
                continue
            text = "".join("\t".join(row) + "\n" for row in [header, *rows])
        else:
            out = io.StringIO()
            how = csv.QUOTE_MINIMAL if quoting == "minimal" else csv.QUOTE_ALL
            csv.writer(out, delimiter=mark, quoting=how).writerows([header, *rows])
            text = out.getvalue()
        assert [row for _, row in read_delimited(text, mark).rows] == rows, mark


@pytest.mark.parametrize(
    ("suffix", "text", "words"),
    [
        (".csv", "message;label\nso, so;pos\n", "semicolons"),
        (".csv", "message\tlabel\nso, so\tpos\n", "tabs"),
        (".CSV", "message|label\nso, so|pos\n", "bars"),
        (".tsv", 'message,label\n"so, so",pos\n', "commas"),
        (".csv.gz", "\ufeffmessage;label\r\nso, so;pos\r\n", "semicolons"),
        (".csv", 'message;label;a,b\nso, so;pos;x\n"1,5";neg;y,z\n', "semicolons"),
    ],
)
def test_another_delimiter_is_found_and_said(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    path = write_task(tmp_path, text, suffix)
    task = load_task(path)
    data = load_data(task)
    assert (data.train[0].text, data.train[0].label) == ("so, so", "pos")
    assert any(f"columns are separated by {words}" in note for note in data.notes)
    assert f"note: train{suffix}: columns are separated by {words}" in outlay("task", "check", path).out
    assert json.loads(outlay("task", "check", path, "--json").out)["notes"] == list(data.notes)


def test_what_was_decided_about_files_is_said_by_whatever_reads_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = RunBuilder(PriceBook.load())
    task = str(write_task(tmp_path, "message;label\nso, so;pos\n", ".csv"))
    bench.load(task)
    say_notes(bench.notes, quiet=True)
    assert capsys.readouterr().err == ""
    say_notes(bench.notes)
    assert capsys.readouterr().err.startswith("note: train.csv: columns are separated by semicolons")
    (tmp_path / "said.csv").write_text("gold;prediction\npos;pos\n")
    ran = outlay("evaluate", "--predictions", tmp_path / "said.csv", "--task", task, "--out", tmp_path / "o")
    assert "said.csv: columns are separated by semicolons" in ran.out


def test_a_delimiter_may_be_named(tmp_path: Path) -> None:
    text = "message~label\nso, so~pos\n"
    assert train_rows(tmp_path, text, ".csv", source={"delimiter": "~"}) == [("so, so", "pos")]
    before = load_task(write_task(tmp_path, text, ".csv")).model_dump(mode="json")
    named_ = load_task(write_task(tmp_path, text, ".csv", source={"delimiter": "~"}))
    assert named_.model_dump(mode="json") == before, "how a file is read is in its digest, not in the key of a run"
    assert re.search("'message'.* message~label", said(tmp_path, text.replace(",", ""), ".csv"))
    assert re.search("line 2 has 2 .*header 1, .*`delimiter`", said(tmp_path, text, ".csv"))
    for bad in ("ab", "", "a", "\n", '"'):
        assert "one character" in said(tmp_path, text, ".csv", source={"delimiter": bad})
    assert "`delimiter`" in said(tmp_path, "{}\n", source={"delimiter": ";"})
    (tmp_path / "p.csv").write_text("gold~prediction\npos~pos\nneg~neg\n")
    asked = ("evaluate", "--predictions", tmp_path / "p.csv", "--labels", "pos,neg", "--out", tmp_path / "o")
    assert outlay(*asked, "--delimiter", "~").code == 0
    refused(outlay(*asked, "--delimiter", "~~"), "--delimiter '~~'")
    refused(outlay(*asked), "no column")


@pytest.mark.parametrize(
    ("suffix", "text", "reason"),
    [
        (".csv", "a,b,a\n1,2,3\n", "line 1 names the column 'a'"),
        (".tsv", "a\tb\ta\tb\n1\t2\t3\t4\n", "the column 'a', 'b'"),
        (".csv", "a,b\n1,2\n1,2,3\n4,5\n", "line 3 has 3 columns, the header 2; correct"),
        (".tsv", "a\tb\n1\t2\n3\n4\t5\n", "line 3 has 1 columns, the header 2"),
        (".csv", 'a,b\n1,2\n"3\n4",5\n6\n7,8\n', "line 5 has 1 columns, the header 2"),
        (".csv", 'a,b\n"1,2\n3,4\n', "line 2 opens a quote"),
        (".csv", 'a,b\n"1" x,2\n3,4\n', "line 2 is badly quoted"),
        (".csv", "a,b\n1,2\n3", "line 3 has 1 columns, the header 2; it looks half-written"),
        (".csv", "a,b\n", "holds no rows"),
        (".csv", "\n\n", "holds no rows"),
        (".csv", ",\n1,2\n", "names no column"),
        (".csv", "a,b\n1,\x002\n", "line 2 holds a zero byte"),
        (".csv", "a;b|c\n1;2|3\n", "line 1 has semicolons and bars"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, suffix: str, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        read(tmp_path, f"t{suffix}", text)


def test_what_a_table_may_look_like(tmp_path: Path) -> None:
    assert read(tmp_path, "t.csv", ",a,\n0,x,\n1,y,\n") == [{"a": "x"}, {"a": "y"}]
    assert read(tmp_path, "t.csv", "a,b\r\rx,y\r") == [{"a": "x", "b": "y"}]
    assert read(tmp_path, "t.csv", "\ufeffa,b\nx,y\n\n \n\n") == [{"a": "x", "b": "y"}]
    assert read(tmp_path, "t.TSV", "a\tb\nx\u2028z\ty\n") == [{"a": "x\u2028z", "b": "y"}]
    assert read(tmp_path, "t.csv", "a\nx\ny\n") == [{"a": "x"}, {"a": "y"}]
    (tmp_path / "t.csv").write_text('a,b\n"x,y\nz",w\n1,2\n')
    (note,) = read_file(DataFile(file="t.csv"), tmp_path / "t.csv").notes
    assert note.startswith("t.csv: lines 2 to 3 ")


# --- JSON ------------------------------------------------------------------------------------------------------------

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "gives the key 'a' twice"),
        ('{"a": {"b": 1, "b": 2}}', "gives the key 'b' twice"),
        ('{"a": "\\ud800"}', r"holds half a surrogate pair, \ud800"),
        ('{"\\uDFFF x": 1}', r"holds half a surrogate pair, \udfff"),
        ("[" * DEEP + "]" * DEEP, "is nested too deep"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "is nested too deep"),
        ('{"a": 01}', "is not JSON"),
        ("{'a': 1}", "is not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(BadJson, match=re.escape(reason)):
        parse_json(text)
    for name, content in (("t.jsonl", f'{{"a": 1}}\n{text}\n{{"a": 1}}\n'), ("t.json", f"[{text}]")):
        with pytest.raises(DataError, match=re.escape(reason)) as caught:
            read(tmp_path, name, content)
        assert name == "t.json" or "line 2 " in str(caught.value)


def test_json_that_is_read(tmp_path: Path) -> None:
    digits = "9" * 5000
    assert read(tmp_path, "t.jsonl", f'{{"a": {digits}}}\n') == [{"a": digits}]
    assert read(tmp_path, "t.jsonl", '{"a": "\\ud83d\\ude00"}\r{"a": 2}\r\n\n\n') == [{"a": "😀"}, {"a": 2}]
    assert read(tmp_path, "t.JSONL", '\ufeff{"a": "\\u0000"}') == [{"a": "\0"}]
    assert read(tmp_path, "t.json", '[{"a": 1},\n {"a": 2}]\n') == [{"a": 1}, {"a": 2}]
    assert read(tmp_path, "t.Json", '{"a": "x\u2028y"}\n\n{"a": 2}') == [{"a": "x\u2028y"}, {"a": 2}]
    with pytest.raises(MissingData, match=r"breaks off.*half-written"):
        read(tmp_path, "t.json", '[{"a": 1}, {"a"')
    with pytest.raises(DataError, match=r"t\.json:2 holds int, .*object"):
        read(tmp_path, "t.json", '[{"a": 1}, 2]')


def test_json_lists_and_lines_of_text_are_files_of_a_task(tmp_path: Path) -> None:
    rows = [{"message": "one", "label": "pos"}, {"message": "two", "label": "neg"}]
    assert train_rows(tmp_path, json.dumps(rows), ".json") == [("one", "pos"), ("two", "neg")]
    (tmp_path / "more.txt").write_bytes(b"first text\r\n\r\n  second, text\r\n")
    task = write_task(tmp_path, json.dumps(rows), ".json.gz", pool=[{"name": "more", "file": "more.txt"}])
    pool = load_data(load_task(task)).pool[0].examples
    assert [(e.text, e.origin) for e in pool] == [("first text", "more.txt:1"), ("  second, text", "more.txt:3")]


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("message,label\ncafé,pos\n".encode("latin-1"), r"Latin-1 .*line 2 .*0xE9, 'é'.*iconv -f LATIN1 -t UTF-8"),
        ("message,label\n„so“ 5 €,pos\n".encode("cp1252"), "line 2 .*0x84, '„'.*iconv -f WINDOWS-1252 -t UTF-8"),
        ("message,label\nso,pos\n".encode("utf-16"), "UTF-16; .*iconv -f UTF-16 -t UTF-8"),
        ("message,label\nso,pos\n".encode("utf-16-le"), "UTF-16LE"),
        ("message,label\nso,pos\n".encode("utf-16-be"), "UTF-16BE"),
        ("message,label\nso,pos\n".encode("utf-32"), "UTF-32"),
        ("message,label\nüber,pos\ncafé".encode()[:-1], "line 3 .*half-written"),
        (b"message,label\n\x81\xff,pos\n", "line 2 .*0x81; .*UTF-8"),
        (gzip.compress(b"message,label\n", mtime=0), r"a gzip file; .*\.gz"),
        (b"PK\x03\x04\xff\xfe", "a ZIP file"),
    ],
)
def test_bytes_that_are_no_utf_8_are_said_to_be_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    for name in ("train.csv", "train.tsv", "train.txt", "train.json"):
        with pytest.raises(MissingData, match=reason):
            read(tmp_path, name, content)
    for path, load in (
        ("task.yaml", load_task),
        ("p.toml", lambda p: PriceBook.load([p])),
        ("s.yaml", lambda p: load_sizes([p])),
    ):
        (tmp_path / path).write_bytes(content)
        with pytest.raises((TaskFileError, MoneyError, UnknownModel), match=reason):
            load(tmp_path / path)
    with pytest.raises(MissingData, match=reason):
        _file_corpus([tmp_path / "train.txt"], None)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = write_task(tmp_path, '{"message": "so", "label": "pos"}\n')
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(path).name == "mail"
    prices = '[[price]]\nitem = "label/x"\nunit = "label"\nusd = 0.1\n'
    (tmp_path / "p.toml").write_bytes(b"\xef\xbb\xbf" + prices.encode())
    assert "label/x" in PriceBook.load([tmp_path / "p.toml"])


def test_a_file_that_is_not_there_is_looked_for_beside_the_task(tmp_path: Path) -> None:
    task = write_task(tmp_path, "")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(MissingData) as caught:
        load_data(load_task(task), tmp_path / "elsewhere")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        assert str(folder / "train.jsonl") in str(caught.value)
    assert "data get" not in str(caught.value)
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(MissingData, match="is a folder"):
        load_data(load_task(task))
    content = yaml.safe_load(task.read_text())
    for name in ("x" * 5000, "a\0b"):
        content["data"]["train"]["file"] = name
        task.write_text(yaml.safe_dump(content))
        with pytest.raises(MissingData, match="is not there"):
            load_data(load_task(task))


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("café ", ["'café '", "with a blank behind"]),
        ("\u00a0café", ["'\\xa0café'", "U+00A0 NO-BREAK SPACE in front"]),
        ("cafe\u0301", ["looks like 'café' in another Unicode form (NFD)", "U+0301 COMBINING ACUTE ACCENT", "U+00E9"]),
        ("caf\u200bé", ["'caf\\u200bé'", "looks like 'café'", "it has U+200B ZERO WIDTH SPACE more"]),
        ("сafé", ["looks like 'café'", "U+0441 CYRILLIC SMALL LETTER ES in place of U+0063 LATIN SMALL LETTER C"]),
        ("CAFÉ", ["the label is spelt 'café'"]),
        ("ｃａｆé", ["looks like 'café'", "U+FF43"]),
        ("", ["has the label ''"]),
        ("x" * 200, ["xxx…'"]),
    ],
)
def test_a_label_is_shown_so_that_what_is_wrong_is_seen(label: str, words: list[str]) -> None:
    message = label_problem(label, ["café", "the, bar"])
    for each in words:
        assert each in message
    assert message.endswith("allowed are 'café', 'the, bar'")
    assert len(message) < 300


def test_lists_of_labels_can_be_told_apart() -> None:
    assert listed(["a, b", "c"]) == "'a, b', 'c'"
    assert (named(["a", "b c"]), named(["a", "b,c"]), named(["a", "b "])) == ("a, b c", "'a', 'b,c'", "'a', 'b '")
    assert listed(map(str, range(30))).endswith("'23' and 6 more")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["caf\u00e9", "cafe\u0301"], ["look the same", "NFD", "U+0301"]),
        (["pos", "pos\u200b"], ["look the same", "U+200B"]),
        (["pos", "neg\u00a0"], ["'neg\\xa0' is a label with U+00A0"]),
        (["pos", "  "], ["nothing but blanks"]),
    ],
)
def test_labels_that_nobody_could_tell_apart_are_refused(tmp_path: Path, labels: list[str], words: list[str]) -> None:
    message = said(tmp_path, "", labels=labels)
    for each in words:
        assert each in message
    rows = [{"gold": "x", "prediction": "x"}]
    if "look" in words[0]:
        ran, _ = predictions(tmp_path, rows, *(part for label in labels for part in ("--labels", label)))
        refused(ran, "look the same", words[1])


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("1.0", ["0", "1"], "1"),
        ("1", ["0.0", "1.0"], "1.0"),
        ("-1.00", ["-1", "1"], "-1"),
        ("1.0", ["1", "1.0"], "1.0"),
        ("1.50", ["1.5", "2"], "1.50"),
        ("01", ["1", "2"], "01"),
        ("1.1", ["1.10", "1.2"], "1.1"),
        ("1.00", ["1", "1.0"], "1.00"),
        ("x.0", ["x", "y"], "x.0"),
    ],
)
def test_a_number_with_a_fraction_of_zeros_names_a_class(answer: str, labels: list[str], label: str) -> None:
    assert named_class(answer, labels) == label


def test_float_coded_labels_of_a_task(tmp_path: Path) -> None:
    rows = "message,label\nso,1.0\nno,0.0\nye,1\n"
    assert [label for _, label in train_rows(tmp_path, rows, ".csv", labels=["0", "1"])] == ["1", "0", "1"]
    data = load_data(load_task(tmp_path / "task.yaml"))
    assert data.notes == ("train.csv: labels such as 1.0 are read as 1",)
    names = {"label_names": {"0": "neg", "1": "pos"}}
    assert [label for _, label in train_rows(tmp_path, rows, ".csv", source=names)] == ["pos", "neg", "pos"]


@pytest.mark.parametrize(
    ("rows", "suffix"),
    [
        ("message,label\na,pos\nb,\nc, \nd,neg\n", ".csv"),
        (
            '{"message":"a","label":"pos"}\n{"message":"b"}\n{"message":"c","label":null}\n{"message":"d","label":"neg"}\n',
            ".jsonl",
        ),
        (
            '{"message":"a","label":"pos"}\n{"message":"b","label":NaN}\n{"message":"c","label":""}\n{"message":"d","label":"neg"}\n',
            ".jsonl",
        ),
    ],
)
def test_a_partly_labelled_file_is_refused_with_counts(tmp_path: Path, rows: str, suffix: str) -> None:
    message = said(tmp_path, rows, suffix)
    line = 3 if suffix == ".csv" else 2
    assert re.match(rf"train{suffix}:{line} .*'label'.*\b1 more of the 4 rows.*`pool`", message)
    assert (
        len(load_data(load_task(write_task(tmp_path, rows, suffix, source={"where": {"label": ["pos", "neg"]}}))).train)
        == 2
    )


def test_a_partly_labelled_file_of_a_step_is_refused_with_counts(tmp_path: Path) -> None:
    rows = [{"gold": gold, "prediction": "pos"} for gold in ("pos", None, float("nan"), "")]
    ran, _ = predictions(tmp_path, rows, "--labels", "pos,neg")
    refused(ran, "(row 2) has an empty target", "3 of the 4 rows")


# --- names that have a meaning of their own --------------------------------------------------------------------------


def test_a_column_named_text(tmp_path: Path) -> None:
    rows = '{"text": "so it is", "label": "pos"}\n'
    task = write_task(tmp_path, rows, text="{text}")
    content = yaml.safe_load(task.read_text())
    content["data"]["test"]["fields"] = {"text": "message"}
    task.write_text(yaml.safe_dump(content))
    loaded = load_task(task)
    example = load_data(loaded).train[0]
    assert (example.text, loaded.segments_of(example)) == ("so it is", ("so it is",))
    assert profile(loaded, load_data(loaded)).splits[0].n_rows == 1
    message = said(tmp_path, rows, text="note: {text}")
    assert "`fields: {message: text}`" in message
    assert train_rows(tmp_path, rows, text="note: {message}", source={"fields": {"message": "text"}}) == [
        ("note: so it is", "pos")
    ]


def test_a_field_named_label_is_not_lost_where_rows_are_derived(tmp_path: Path) -> None:
    content = json.loads(json.dumps(TASK)) | {"name": "base", "text": "{label}"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "base.jsonl").write_text("")
    write_task(tmp_path, '{"label": "pos"}\n')
    derived = json.loads(json.dumps(TASK))
    derived["data"]["train"] = {"derive": {"task": "base.yaml", "split": "train"}, "target": "label"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(derived))
    with pytest.raises(DataError, match=r"base .*'label'"):
        load_data(load_task(tmp_path / "task.yaml"))


def test_a_target_that_is_a_part_of_the_text_is_refused(tmp_path: Path) -> None:
    rows = json.dumps({"whole": "left: a right: b", "right": "pos"}) + "\n"
    message = said(tmp_path, rows, text="left: {left} right: {right}", source={"source": "whole", "target": "right"})
    assert re.search("'right'.*'whole'", message)


# --- entity types of several words -----------------------------------------------------------------------------------


def test_entity_types_of_several_words() -> None:
    labels = ("Body part", "Body", "Drug name (INN)")
    line = "left  arm [Body  Part] torso [body] aspirin [DRUG NAME (INN)] rest"
    entities = [Entity("left arm", "Body part"), Entity("torso", "Body"), Entity("aspirin", "Drug name (INN)")]
    assert parse_entities(line, labels) == entities
    assert unlabelled(line, labels) == "rest"
    assert parse_entities(render_entities(entities), labels) == entities
    assert unlabelled("arm [Body part", labels) == "arm [Body part"


@pytest.mark.parametrize("label", ["Body  part", " Body", "Body\tpart", "Bo[dy"])
def test_entity_types_that_cannot_be_written_are_refused(tmp_path: Path, label: str) -> None:
    message = said(tmp_path, "", kind="entities", labels=["Drug", label])
    assert repr(label) in message


# --- YAML ------------------------------------------------------------------------------------------------------------


def test_yaml_scalars_stay_what_was_written(tmp_path: Path) -> None:
    words = "010, 1.10, 12:30, 2024-05-31, 1_000, 0x1F, 1e3, +5, .5, 0o17, yes, NO, on, off, y, =, .nan, 007.50, 1."
    write_task(tmp_path, "")
    content = yaml.safe_load((tmp_path / "task.yaml").read_text())
    del content["labels"]
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content) + f"labels: [{words}, {'9' * 5000}]\n")
    assert load_task(tmp_path / "task.yaml").labels == (*words.split(", "), "9" * 5000)


@pytest.mark.parametrize(("scalar", "shown"), [("null", "null"), ("~", "null"), ("true", "true"), ("False", "false")])
def test_yaml_scalars_that_are_no_text_are_to_be_quoted(tmp_path: Path, scalar: str, shown: str) -> None:
    write_task(tmp_path, "")
    text = (tmp_path / "task.yaml").read_text().replace("- pos\n", f"- {scalar}\n")
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(TaskFileError, match=rf"labels\.0: .*\b{shown}; .*quotes"):
        load_task(tmp_path / "task.yaml")


def test_yaml_numbers_are_numbers_where_numbers_are_wanted() -> None:
    text = "n: 007\nrate: 3e-5\nbig: 1_000\nhalf: .5\nless: -2\nend: .inf\n5: five\n010: ten\nnull: none\n"
    assert plain(parse_yaml(text)) == {
        **{"n": 7, "rate": 3e-5, "big": 1000, "half": 0.5, "less": -2, "end": float("inf")},
        **{"5": "five", "010": "ten", "null": "none"},
    }
    content = {**TASK, "max_source_tokens": parse_yaml("064"), "dev_fraction": parse_yaml("0.10"), "dev": "carved"}
    task = Task.model_validate(content)
    assert (type(task.max_source_tokens), task.max_source_tokens, task.dev_fraction) == (int, 64, 0.1)


def test_yaml_merge_keys_work() -> None:
    text = (
        "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nown:\n  <<: [*base, *more]\n  a: 5\nlast:\n  <<: *more\n"
    )
    assert plain(parse_yaml(text)) == {
        **{"base": {"a": 1, "b": 2}, "more": {"b": 3, "c": 4}},
        **{"own": {"a": 5, "b": 2, "c": 4}, "last": {"b": 3, "c": 4}},
    }
    assert parse_yaml("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\n")["c"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice", 3),
        ("a: 1\n'a': 3\n", "the key 'a' is given twice", 2),
        ("x:\n  <<: {a: 1}\n  b: 1\n  b: 2\n", "the key 'b' is given twice", 4),
        ("a: 1\n<<: 5\n", "expected a mapping", 2),
        ("a: !!python/object:os.system x\n", "tags such as", 1),
        ("a: !mine x\n", "tags such as", 1),
        ("a: *nowhere\n", "undefined alias", 1),
        ('a: "\\ud800"\n', "half a surrogate pair", 1),
        ("a: 1\nb: x\x07\n", "the character U+0007", 2),
        ("a: [1, 2\n", "expected", 2),
        ("[" * 5000, "nested too deep", None),
        ("- " * 1000 + "x", "nested too deep", None),
        ("{a: " * 5000, "nested too deep", None),
        ("? [a, b]\n: c\n", "unhashable", 1),
        ("---\na: 1\n---\nb: 2\n", "single document", 3),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, reason: str, line: int | None) -> None:
    with pytest.raises(BadYaml, match=re.escape(reason)) as caught:
        parse_yaml(text)
    assert caught.value.line == line
    (tmp_path / "task.yaml").write_text(text)
    where = "" if line is None else f" line {line}"
    with pytest.raises(TaskFileError, match=rf"task\.yaml{where}: .*{re.escape(reason)}"):
        load_task(tmp_path / "task.yaml")
    with pytest.raises(UnknownModel, match=re.escape(reason)):
        load_sizes([tmp_path / "task.yaml"])
    (tmp_path / "study.yaml").write_text(text)
    refused(outlay("study", "run", tmp_path / "study.yaml", "--out", tmp_path / "o"), reason)


def test_yaml_that_repeats_itself_without_end_takes_no_time(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "name: *a39\n"
    (tmp_path / "task.yaml").write_text(bomb)
    with pytest.raises(TaskFileError) as caught:
        load_task(tmp_path / "task.yaml")
    assert len(str(caught.value)) < 1000
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    (tmp_path / "task.yaml").write_text(merges)
    with pytest.raises(TaskFileError):
        load_task(tmp_path / "task.yaml")


# --- prices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x = " + "[" * 50_000, "x = " + "9" * 5000, "x = 1\nx = 2\n", "x = '\x00'"])
def test_toml_that_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    for command in (("prices", "--prices"), ("machine", "list", "--machines")):
        refused(outlay(*command, tmp_path / "p.toml"), "p.toml")


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_as_people_have_it(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"message": ["a", "b", None], "label": [1.0, 0.0, float("nan")]})
    parquet.write_table(table, tmp_path / "t.PARQUET")
    task = write_task(tmp_path, (tmp_path / "t.PARQUET").read_bytes(), ".PARQUET", labels=["0", "1"])
    with pytest.raises(DataError, match=r"PARQUET:3 .*'message'.* null"):
        load_data(load_task(task))
    parquet.write_table(table.slice(0, 2), tmp_path / "train.PARQUET")
    assert [e.label for e in load_data(load_task(task)).train] == ["1", "0"]
    twice = arrow.Table.from_arrays([arrow.array(["a"])] * 2, names=["message", "message"])
    parquet.write_table(twice, tmp_path / "train.PARQUET")
    with pytest.raises(DataError, match="the column 'message'"):
        load_data(load_task(task))
    parquet.write_table(table.set_column(1, "label", [[["x"], ["y"], []]]), tmp_path / "train.PARQUET")
    with pytest.raises(OutlayError, match=r"PARQUET:1 .*'label'.* a list"):
        load_data(load_task(task))


def test_rows_keep_the_lines_they_end_in(tmp_path: Path) -> None:
    """Seeded orders are over these names: another name would be another order."""
    (tmp_path / "t.csv").write_text('a,b\nx,1\n"two\nlines",2\n\ny,3\n')
    found = read_file(DataFile(file="t.csv"), tmp_path / "t.csv").rows
    assert [row.origin for row in found] == ["t.csv:2", "t.csv:4", "t.csv:6"]
    assert found[0] == SourceRow("t.csv:2", {"a": "x", "b": "1"})
