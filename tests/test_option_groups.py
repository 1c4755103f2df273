"""Options in groups: the command line has them side by side, the command gets a record of each group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from outlay.cli.lazy_help import NOT_SHOWN, click_command, places_of
from outlay.cli.option_groups import SettingOptions, grouped, option
from outlay.settings import TeachSettings, TrainSettings, setting_fields


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows."""

    file: Annotated[Path | None, option("--file", panel="Rows", says="A file.")] = None
    labels: Annotated[list[str] | None, option("--labels", panel="Rows", says="Labels.")] = None


Teaching = Annotated[dict[str, Any], SettingOptions("teach")]
Training = Annotated[dict[str, Any], SettingOptions("train", ("Training",))]

given: list[tuple[Any, ...]] = []


@grouped
def work(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    rows: Rows,
    settings: Training,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Work on rows."""
    given.append((model, rows, settings, quiet))


@grouped
def speak(answers: Teaching) -> None:
    """Speak."""
    given.append((TeachSettings(**answers),))


def run(command: Any, *arguments: str) -> int:
    """Exit code of a command line."""
    given.clear()
    with pytest.raises(SystemExit) as ended:
        click_command(command, "command", "").main(list(arguments), prog_name="command")
    return int(ended.value.code or 0)


def test_a_command_gets_what_was_given_and_defaults_of_the_rest() -> None:
    assert run(work, "m", "--labels", "a", "--labels", "b", "--lr", "0.5", "--no-gradient-checkpointing") == 0
    settings = {"learning_rate": 0.5, "gradient_checkpointing": False}
    assert given == [(Path("m"), Rows(None, ["a", "b"]), settings, False)]
    assert run(work, "m", "--file", "f", "--quiet") == 0
    assert given == [(Path("m"), Rows(Path("f"), None), {}, True)]


def test_short_names_are_options_and_stand_on_no_help_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"--{short}" for each in setting_fields(TrainSettings).values() for short in each.short_options} < set(
        NOT_SHOWN
    )
    for rate, warmup in (("--lr", "--warmup"), ("--learning-rate", "--warmup-fraction")):
        assert run(work, "m", rate, "0.5", warmup, "0.25") == 0
        assert given[0][2] == {"learning_rate": 0.5, "warmup_fraction": 0.25}
    assert run(work, "--help") == 0
    page = capsys.readouterr().out
    assert "--learning-rate <float> " in page
    assert not [name for name in NOT_SHOWN if f"{name} " in page]


def test_a_teacher_s_options_have_its_defaults() -> None:
    assert run(speak) == 0
    assert given == [(TeachSettings(),)]
    assert run(speak, "--sample", "--top-p", "0.9", "--max-logits", "0") == 0
    assert given == [(TeachSettings(sample=True, top_p=0.9, max_logits=0),)]


def test_what_is_needed_or_of_another_type_is_refused() -> None:
    assert run(work) == 2
    assert run(work, "m", "--epochs", "many") == 2
    assert run(work, "m", "--temperature", "2") == 2  # of another heading
    assert given == []


def test_every_setting_under_a_heading_is_an_option_and_paths_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "--help") == 0
    page = capsys.readouterr().out
    for each in setting_fields(TrainSettings).values():
        assert (f"--{each.option} " in page) == (each.about.heading == "Training" and each.about.on_line), each.name
    assert places_of(work) == ("model", "file")
