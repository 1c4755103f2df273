"""Every path that comes in is expanded, every path that goes out in a command is quoted, and home folders may be missing."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import outlay as package
from outlay.cli.failures import line_of
from outlay.cli.lazy_help import Command, Group, click_command
from outlay.errors import MissingData, UsageError
from outlay.models.reference import resolve_folder
from outlay.storage import paths
from outlay.storage.locations import _LIBRARY_CACHES, default_location, local_root, settle_caches, stand_in_note
from outlay.storage.remote import open_location
from outlay.study.grid import find_study, load_study
from outlay.tasks.download import fetch
from outlay.tasks.loading import data_root, locate
from outlay.tasks.sources import DataFile
from outlay.tasks.task import load_task
from tests.checkpoints import make_checkpoint
from tests.test_cli import TASK, outlay, refused, row, write_task
from tests.test_docs import commands

PATH = "places"
WORD = "words"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder, and a command given elsewhere; nothing may appear there under the name `~`."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    for name in ("OUTLAY_STORE", "OUTLAY_CACHE", "OUTLAY_DATA", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    assert [path for path in tmp_path.rglob("*") if "~" in path.name] == []


# --- the function ----------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert paths.expand("~") == str(home)
    assert paths.expand("~/a b/c") == f"{home}/a b/c"
    assert paths.expand("~root/x") == f"{pwd.getpwnam('root').pw_dir}/x"
    assert paths.expand_path(Path("~/x")) == home / "x"


@given(st.text().filter(lambda text: not text.startswith("~")))
def test_what_does_not_begin_with_one_stays_as_it_is(text: str) -> None:
    for prefix in ("", "s3://bucket/~/", "package:name/~", "./~"):
        assert paths.expand(prefix + text) == prefix + text


def test_a_home_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'~nobody-here/x'.*no such user"):
        paths.expand("~nobody-here/x")
    monkeypatch.delenv("HOME")
    assert paths.expand("~/x") == f"{pwd.getpwuid(paths.os.getuid()).pw_dir}/x"
    monkeypatch.setattr(paths.pwd, "getpwuid", _unknown)
    with pytest.raises(UsageError, match=r"'~/x'.*set HOME"):
        paths.expand("~/x")


def _unknown(_uid: int) -> Any:
    raise KeyError("uid not found")


# --- every option ----------------------------------------------------------------------------------------------------


def originals() -> dict[tuple[str, ...], Any]:
    """The function of every command."""
    return {words: inspect.unwrap(command.callback) for words, command in commands().items()}


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_every_option_that_is_a_path_is_expanded(words: tuple[str, ...], home: Path) -> None:
    """Each command's own signature, built as the program builds it, around a function that remembers what it was given."""
    original, got = originals()[words], {}

    @functools.wraps(original)
    def remember(**given: Any) -> None:
        got.update(given)

    del remember.__wrapped__  # type: ignore[attr-defined]
    remember.__annotations__ = get_type_hints(original, include_extras=True)
    own = inspect.signature(original).parameters.values()
    remember.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(annotation=remember.__annotations__[each.name]) for each in own]
    )
    group = typer.Typer()
    group.command("probe")(remember)
    group.command("other")(lambda: None)
    alone = click_command(remember, "probe", "says")
    hints = {name: str(hint) for name, hint in get_type_hints(original).items()}
    built = commands()[words]
    arguments, wanted = [], {}
    for parameter in built.params:
        if "pathlib" in hints[parameter.name]:
            arguments += [
                *([parameter.opts[0]] if parameter.param_type_name == "option" else []),
                f"~/{parameter.name}",
            ]
            many = hints[parameter.name].startswith("list")
            wanted[parameter.name] = [home / parameter.name] if many else home / parameter.name
        elif parameter.required:
            arguments += [*([parameter.opts[0]] if parameter.param_type_name == "option" else []), "1"]
    for command, before in ((alone, []), (click_command(group, "group", "says"), ["probe"])):
        got.clear()
        command.main([*before, *arguments], standalone_mode=False)
        assert {name: got[name] for name in wanted} == wanted
    assert isinstance(built, Command | Group)


PLACES = {
    *("task", "tasks", "study", "store", "source", "ref"),
    *("model", "teacher", "teachers", "student", "students", "base", "general_student", "metric_model"),
}
"""Options of text that may hold a path: each is read by a function that is tested below."""
WORDS = {
    *("amount", "answers_from", "budget", "budgets", "cash_cap", "closing", "delimiter", "dev", "device_map"),
    *("divergence", "endpoint", "group", "label", "label_price", "labeller", "message", "repo", "revision", "text"),
    *(
        "executor",
        "this_machine",
        "kind",
        "labels",
        *("llm_examples", "llm_key_env", "llm_price", "llm_price_item", "llm_url", "llm_way"),
        "machine",
        "match",
        "max_size",
        "metric",
        "models",
        "name",
    ),
    *(
        "objective",
        "on",
        "optimizer",
        "peft",
        "method",
        "pooling",
        "pair",
        "tune",
        "probe_choose_by",
        "probe_class_weight",
        "precision",
        "prediction_column",
        "prefix",
        "price_item",
        "ray",
        "report_to",
    ),
    *(
        "describe",
        "instruction",
        "llm",
        "llm_examples",
        "llm_key_env",
        "llm_price",
        "llm_url",
        "llm_way",
        "seller",
        "url",
    ),
    *("role", "run", "scale", "set", "size", "source_column", "split", "strategies", "strategy"),
    *("student_training", "target", "target_column"),
}
"""Options of text that hold none."""


def test_every_option_of_text_is_known_to_hold_a_path_or_none() -> None:
    found = {
        name
        for original in originals().values()
        for name, hint in get_type_hints(original).items()
        if name != "return" and "str" in str(hint).replace("pathlib", "")
    }
    assert found - PLACES - WORDS == set(), "say whether these hold paths, and expand them if they do"
    assert (PLACES | WORDS) - found == set(), "these are no longer options"


def test_texts_that_hold_paths(home: Path) -> None:
    task = write_task(home / "task")
    checkpoint = home / "model"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).touch()
    (home / "s.yaml").write_text(
        "name: s\nstrategies: [annotate]\nscales: {cpu: {budget_usd: 1, tasks: {~/task/task.yaml: {}}}}"
    )
    assert load_task("~/task/task.yaml").folder == task.parent
    assert resolve_folder("~/model") == resolve_folder("cut:1", base="~/model") == checkpoint
    assert find_study("~/s.yaml") == home / "s.yaml"
    study = load_study(find_study("~/s.yaml"))
    assert study._located("~/task/task.yaml") == str(task)
    for location in (open_location("~/store").location, str(local_root("~/store"))):
        assert location == str(home / "store")


def test_files_of_a_task_may_lie_at_home(home: Path, tmp_path: Path) -> None:
    task = load_task(write_task(home / "task"))
    assert locate(task, DataFile(file="~/rows.csv")) == home / "rows.csv"
    assert locate(task, DataFile(file="train.jsonl")) == home / "task" / "train.jsonl"
    shipped = load_task("fever")
    with pytest.raises(MissingData, match=re.escape(str(home / "mirror"))):
        fetch(shipped, "~/mirror", tmp_path / "data")


def test_a_run_whose_every_path_begins_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell leaves them that does not expand `--out=~/x`, or a container's list of variables."""
    write_task(home / "task", TASK.replace("label/multipit_id", "label/mine"))
    make_checkpoint(home / "model", [row(i)["message"] for i in range(200)], n_layers=2)
    (home / "prices.toml").write_text('[[price]]\nitem = "label/mine"\nunit = "label"\nusd = "0.2"\n')
    monkeypatch.setenv("OUTLAY_STORE", "~/store")
    models = ("--teacher=~/model", "--student=cut:1", "--base", "~/model", "--threads=1", "--set=student.epochs=1")
    ran = outlay(
        *("run", "~/task/task.yaml", "--strategy=annotate", "--budget=2", "--prices=~/prices.toml", *models),
        *("--out=~/results", "--quiet"),
    )
    assert ran.code == 0, ran.err
    assert {path.name for path in home.iterdir()} == {"task", "model", "prices.toml", "store", "results"}
    assert list(Path.cwd().iterdir()) == []
    assert f"outlay ledger show {home}/results\n" in ran.out
    assert outlay("ledger", "verify", "~/results").code == 0
    assert "label/mine" in outlay("prices", "--prices=~/prices.toml").out
    assert outlay("task", "check", "~/task/task.yaml", "--prices=~/prices.toml").code == 0
    refused(outlay("task", "check", "~/none.yaml"), f"no task file {home}/none.yaml")
    refused(outlay("task", "check", "~nobody-here/task.yaml"), "no such user")


# --- every variable --------------------------------------------------------------------------------------------------

VARIABLES = {
    "OUTLAY_STORE": PATH,
    "OUTLAY_CACHE": PATH,
    "OUTLAY_DATA": PATH,
    "OUTLAY_STORE_QUOTA": WORD,
    "OUTLAY_LAUNCHED": WORD,
    "OUTLAY_NO_HOME": WORD,
    "OUTLAY_PRECISION": WORD,
}


def test_every_variable_is_known_to_hold_a_path_or_none() -> None:
    sources = "".join(path.read_text() for path in Path(package.__file__).parent.rglob("*.py"))
    assert set(re.findall(r"OUTLAY_[A-Z_]+", sources)) == set(VARIABLES)


def test_variables_that_hold_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_location() == str(home / ".cache" / "outlay" / "store")
    assert data_root() == home / ".local" / "share" / "outlay" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    monkeypatch.setenv("XDG_DATA_HOME", "~/shared")
    assert default_location() == str(home / "xdg" / "outlay" / "store")
    assert data_root() == home / "shared" / "outlay" / "data"
    for name in (name for name, kind in VARIABLES.items() if kind == PATH):
        monkeypatch.setenv(name, f"~/{name}")
    assert default_location() == str(home / "OUTLAY_STORE")
    assert data_root() == home / "OUTLAY_DATA"
    assert local_root("s3://bucket/x").parent == home / "OUTLAY_CACHE"
    monkeypatch.setenv("OUTLAY_STORE", "s3://bucket/~/x")
    assert default_location() == "s3://bucket/~/x"


# --- no home ---------------------------------------------------------------------------------------------------------


def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `settle_caches` sets is gone after the test."""
    for name in (*_LIBRARY_CACHES, "USER", paths.NO_HOME):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(params=["absent", "a file", "no such", "unknown"])
def homeless(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home folder that cannot be used, one way or another."""
    _own_variables(monkeypatch)
    if request.param == "unknown":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(paths.pwd, "getpwuid", _unknown)
    elif request.param == "absent":
        monkeypatch.setenv("HOME", "")
        monkeypatch.setattr(paths.pwd, "getpwuid", _unknown)
    else:
        (home / "file").touch()
        monkeypatch.setenv("HOME", str(home / "file") if request.param == "a file" else "/proc/none")
    return str(request.param)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_things_are_kept_beside_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd() / "outlay-runs" / "cache"
    assert default_location() == str(here / "store")
    note = stand_in_note(None)
    assert note is not None
    assert str(here) in note
    assert "--store" in note
    assert stand_in_note("somewhere") is None
    shown = outlay("store", "show")
    assert (shown.code, shown.err) == (0, f"outlay: {note}\n")
    monkeypatch.setenv("OUTLAY_STORE", str(here.parent / "mine"))
    assert outlay("store", "show").err == ""


def test_without_a_home_libraries_are_told_where_their_caches_are(homeless: str) -> None:
    settle_caches()
    here = Path.cwd() / "outlay-runs" / "cache"
    assert {Path(os.environ[name]).parent for name in _LIBRARY_CACHES} == {here}
    assert getpass.getuser()
    assert Path.home().is_absolute()
    assert Path("~").expanduser().is_absolute()
    if homeless in ("absent", "unknown"):
        assert paths.home() is None
        with pytest.raises(UsageError, match="set HOME"):
            paths.expand("~/x")


def test_models_in_a_home_that_cannot_be_written_are_still_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _own_variables(monkeypatch)
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "outlay").touch()
    settle_caches()
    assert "HF_HOME" not in os.environ
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(Path.cwd()))


def test_with_a_home_nothing_is_said_to_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _own_variables(monkeypatch)
    settle_caches()
    assert os.environ.keys().isdisjoint(_LIBRARY_CACHES)
    assert list(home.iterdir()) == [], "to look is not to make"


@pytest.mark.usefixtures("homeless")
def test_without_a_home_or_a_folder_for_results_they_are_kept_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (Path.cwd() / "outlay-runs").touch()
    monkeypatch.setattr("outlay.storage.locations.tempfile.gettempdir", lambda: str(tmp_path / "temp"))
    assert Path(default_location()).is_relative_to(tmp_path / "temp")


def test_what_only_a_home_can_keep_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer writes its completion there, before any command is looked at."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(paths.pwd, "getpwuid", _unknown)
    assert home.is_dir()
    with pytest.raises(RuntimeError) as asked:
        Path.home()
    assert (line_of(asked.value) or "").startswith("there is no home folder")
    # typer would ask which shell is above this process.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    refused(outlay("--install-completion", "bash"), "there is no home folder")


def test_without_a_home_data_must_be_named(homeless: str) -> None:
    ran = outlay("task", "check", "fever")
    if homeless in ("absent", "unknown"):
        refused(ran, "no home folder", "--data")
    else:
        refused(ran, "is not there")


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_no_command_needs_a_home(words: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is wrong with what they are given here: it is said in one line."""
    _own_variables(monkeypatch)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(paths.pwd, "getpwuid", _unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if words in (("demo",), ("machine", "calibrate")):
        return  # nothing is wrong with what they are given, and they take minutes
    arguments: list[str] = []
    for parameter in commands()[words].params:
        if parameter.required:
            arguments += [parameter.opts[0]] if parameter.param_type_name == "option" else []
            arguments.append("1" if "budget" in parameter.name else "fever")
    ran = outlay(*words, *arguments)
    assert ran.code in (0, 1), ran.err
    assert len([line for line in ran.err.splitlines() if "what is made is kept in" not in line]) <= 1, ran.err
