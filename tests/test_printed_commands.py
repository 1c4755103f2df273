"""A command that is printed can be pasted back, whatever the folders are called."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import outlay as package
from outlay.cli.app import COMMANDS
from outlay.errors import OutlayError
from outlay.models.cost_model import load_profile
from outlay.money.ledger import Ledger
from outlay.storage.paths import as_word, command_line
from outlay.storage.store import Store
from outlay.study.index import StudyIndex
from outlay.study.runner import reopen_study, status_of
from tests.checkpoints import make_checkpoint
from tests.studies import study_in_this_process
from tests.test_cli import Ran, outlay, refused
from tests.test_docs import problem
from tests.test_names import PRICES, STUDY, text, write_task

ODD = 'it\'s a "töst" $HOME `x`; 100% #1?&'
FOLDERS = [ODD, "-x", "--json", "~", "a b/-c", "日本 語", "(a)*[b]"]


def paste(command: str) -> Ran:
    """As a shell takes it apart."""
    words = shlex.split(command)
    assert words[0] == "outlay"
    return outlay(*words[1:])


# --- the function ----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1), min_size=1))
def test_a_path_is_one_word_that_leads_to_itself(parts: list[str]) -> None:
    path = Path("/".join(parts))
    for word in (as_word(path), *shlex.split(command_line(path))):
        assert not word.startswith(("-", "~"))
        assert Path(word).absolute() == path.absolute()


def test_other_words_are_what_they_are() -> None:
    assert command_line("outlay", "run", "--n", 3, "~/x y") == "outlay run --n 3 '~/x y'"


# --- what the program says -------------------------------------------------------------------------------------------

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))


@functools.cache
def said(path: Path) -> list[tuple[int, str, bool]]:
    """Line, text and whether it holds values, of every text of a file but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in ast.walk(node)} - {
        None
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
                for part in node.values
            )
            found.append((node.lineno, words, True))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            found.append((node.lineno, node.value, False))
    return found


def test_every_command_that_is_said_exists() -> None:
    wrong, n = [], 0
    for path in SOURCES:
        for line, words, _ in said(path):
            for command in re.findall(r"`outlay ((?:[^`{]|\n)+)`", words):
                n += 1
                if (what := problem(" ".join(command.split()), whole=False)) is not None:
                    wrong.append(f"{path.name}:{line}: outlay {command}: {what}")
    assert n > 10
    assert wrong == []


def test_no_command_is_put_together_by_hand() -> None:
    """A value behind `outlay` in a text is one that nobody quoted."""
    by_hand = [
        f"{path.name}:{line}: {words}"
        for path in SOURCES
        for line, words, has_values in said(path)
        if has_values and re.search(rf"\boutlay (?:{'|'.join(COMMANDS)})\b[^`]*\{{", words)
    ]
    assert by_hand == []


def test_words_are_quoted_in_one_place() -> None:
    """`outlay.storage.paths` alone knows how: whoever needs it elsewhere asks there."""
    quoting = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(alias.name == "shlex" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "shlex")
    }
    assert quoting == {"paths.py"}


# --- pasted back -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an odd name, with a task, prices, a model and a store in folders of odd names."""
    root = tmp_path_factory.mktemp("odd") / ODD
    write_task(root / "my task", "tk")
    (root / "my prices.toml").write_text(PRICES)
    make_checkpoint(root / "a model", [text(i) for i in range(520)], n_layers=2)
    return root


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    study_in_this_process(monkeypatch)
    return made


def run(folder: str) -> Ran:
    return outlay(
        *(
            "run",
            "my task/task.yaml",
            "--budget",
            1,
            "--strategy",
            "annotate",
            "--teacher",
            "./a model",
            "--student",
            "cut:1",
        ),
        *("--threads", 1, "--set", "student.epochs=1", "--prices", "my prices.toml", "--store", "a store"),
        f"--out={folder if not folder.startswith('~') else Path.cwd() / folder}",
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_receipts_of_a_run(here: Path, folder: str) -> None:
    ran = run(folder)
    assert ran.code == 0, ran.err
    assert (here / folder / "report.html").exists()
    (line,) = [line for line in ran.out.splitlines() if line.startswith("receipts: ")]
    shown = paste(line.removeprefix("receipts: "))
    assert shown.code == 0, shown.err
    assert shown.out.startswith("Receipt of run ")
    assert outlay("ledger", "verify", as_word(Path(folder))).code == 0
    again = outlay("report", as_word(Path(folder)))
    assert line in again.out.splitlines()


def test_a_shell_takes_it_as_it_is(here: Path) -> None:
    line = next(line for line in run(ODD).out.splitlines() if line.startswith("receipts: "))
    script = f'outlay() {{ {shlex.quote(sys.executable)} -m outlay "$@"; }}\n{line.removeprefix("receipts: ")}'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Receipt of run ")


@pytest.mark.parametrize("folder", ["a study", "-s", "~s"])
def test_a_study_is_gone_on_with(here: Path, folder: str) -> None:
    (here / "-my study.yaml").write_text(
        STUDY.format(model="./a model", more="strategies: [annotate]\n    tasks: {my task/task.yaml: {}}")
    )
    out = Path(folder) if not folder.startswith("~") else here / folder
    where = ("--prices", "my prices.toml", "--store", "a store", f"--out={out}")
    first = outlay("study", "run", *where, "--", "-my study.yaml")
    assert first.code == 0, first.err
    out = Path(folder)
    command = status_of(out).again
    assert command is not None
    assert command == StudyIndex.read(out).again(out)
    again = paste(command)
    assert again.code == 0, again.err
    assert "2 there already, nothing to do" in again.err
    told = paste(command_line("outlay", "study", "status", out))
    assert told.code == 0, told.err


def test_single_steps_in_odd_folders(here: Path) -> None:
    model = ("--base", "./a model", "--quiet", "--threads", 1)
    few = ("--task", "my task/task.yaml", "--epochs", 1, "--precision", "fp32")
    assert outlay("finetune", "--model", "cut:1", *model, *few, "--out", "-m/a 'model'").code == 0
    told = outlay(
        "teach", "./-m/a 'model'", "--student", "cut:1", "--base", "./a model", *few[:2], "--quiet", "--out", "-t"
    )
    assert told.code == 0, told.err
    assert outlay("targets", "show", "./-t").code == 0
    assert outlay("distill", "./-t", "--student", "cut:1", *model, *few, "--out", '"d"').code == 0
    scored = outlay("evaluate", '"d"', *few[:2], "--quiet")
    assert scored.code == 0, scored.err
    assert [path.name for path in (here / '"d"' / "evaluation").iterdir()] == ["tk-test"]
    assert outlay("predict", '"d"', *few[:2], "--quiet", "--out", "-p.jsonl").code == 0
    assert (here / "-p.jsonl").exists()


def hint(error: str) -> str:
    """The command between its backticks; what is for the user to fill in is in capitals."""
    return error.partition("`outlay ")[2].rpartition("`")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_hints_name_the_folder_they_are_about(here: Path, folder: str) -> None:
    path = here / "hints" / folder
    store = Store(path, quota_bytes=1)
    hints = []
    with pytest.raises(OutlayError) as full:
        store._check_quota(2)
    hints.append(str(full.value))
    for look in (StudyIndex.read, reopen_study):
        with pytest.raises(OutlayError) as found:
            look(Path(folder) / "nothing here")  # type: ignore[operator]
        hints.append(str(found.value).replace("`outlay run`, `outlay study run`", "it"))
    path.mkdir(parents=True, exist_ok=True)
    (path / "machine.toml").write_text("nothing")
    with pytest.raises(OutlayError) as odd:
        load_profile(path / "machine.toml")
    hints.append(str(odd.value))
    for words in hints:
        command = hint(words)
        assert problem(command, whole=True) is None, command
        assert any(str(Path(word).absolute()).startswith(str(here)) for word in shlex.split(command)), command
    assert paste("outlay " + hint(hints[0])).code == 0


def test_a_damaged_ledger_says_how_to_look(here: Path) -> None:
    folder = Path("-damaged it's")
    assert run(str(folder)).code == 0
    shutil.copy(folder / "ledger.sqlite", here / "kept")
    (folder / "ledger.sqlite").write_bytes(b"no ledger" * 100)
    ran = outlay("ledger", "show", as_word(folder))
    assert ran.code == 1
    if "`" in ran.err:
        assert paste("outlay " + hint(ran.err)).code == 1
    refused(ran)


def test_a_run_is_topped_up_by_the_command_that_is_said_where_it_has_no_cash(here: Path) -> None:
    """It names folder and run; the dollars are the user's to say."""
    folder = Path("-top it's up")
    assert run(str(folder)).code == 0
    run_id = Ledger(folder / "ledger.sqlite").run_ids()[0]
    command = command_line("outlay", "ledger", "topup", folder, run_id, "DOLLARS")
    ran = paste(command.replace("DOLLARS", "2"))
    assert ran.code == 0, ran.err
