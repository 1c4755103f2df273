"""What is written about the program is checked by the program: commands, options, links; `docs/cli.md` is made from it.

``python -m tests.test_docs`` writes `docs/cli.md` and the tables of settings in `docs/training.md` anew.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer

from outlay.cli.app import app
from outlay.cli.lazy_help import NOT_SHOWN, StrategyCommand, strategy_rows
from outlay.settings import SettingField, TeachSettings, TrainSettings, setting_fields

ROOT = Path(__file__).parent.parent
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), *ROOT.glob("CHANGELOG.md")})
CLI_PAGE = ROOT / "docs" / "cli.md"
TRAINING_PAGE = ROOT / "docs" / "training.md"

FENCE = re.compile(r"^(?P<mark>```+|~~~+)(?P<kind>[^\n]*)\n(?P<body>.*?)^(?P=mark)[ \t]*$", re.M | re.S)
COMMAND_LINE = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:uv run |uvx |\S*/bin/)?outlay(?: (?P<rest>.*))?$")
INLINE = re.compile(r"`outlay ((?:[^`]|\n)+)`")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
SOURCE = re.compile(r"<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.M)


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by its words, such as ("ledger", "show")."""
    found: dict[tuple[str, ...], Any] = {}

    def visit(command: Any, words: tuple[str, ...]) -> None:
        if not hasattr(command, "commands") or command.invoke_without_command:
            found[words] = command
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                visit(inner, (*words, name))

    visit(typer.main.get_command(app), ())
    return found


def options_of(command: Any) -> dict[str, Any]:
    options = {
        name: p for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)
    }
    return options | {"--help": None, "-h": None}


def arguments_of(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


# --- docs/cli.md -----------------------------------------------------------------------------------------------------

HEAD = """# The command line

Every command takes `--help`. Progress goes to standard error, so standard output can be piped; with `--json` it is one JSON
document. `TASK` is the name of a shipped task or the path of your own `task.yaml` ([tasks](tasks.md)), `STUDY` that of a study
([studies](studies.md)); `DIR` is a results folder, as `run`, `compare` and `study run` make it.

Output fits the terminal. Where its encoding lacks a letter (`LC_ALL=C`, `PYTHONIOENCODING=latin-1`), lines and signs
are drawn in ASCII, other letters as `?`, and JSON escapes them; the exit code stays the same. An error handler that
`PYTHONIOENCODING` names (`ascii:xmlcharrefreplace`) counts. Columns are measured in cells, so CJK letters and emoji
keep them straight. Control characters in labels and texts are shown (`\\x1b`), never sent, and `[markup]` in them is
text. A reader that stops early (`outlay prices | head -1`) ends a command quietly with exit 141. Where the system
refuses to write a file (a full disk, a limit on its size, permissions) one line names it; make room and run the same
command again, it goes on with what was bought and done.

| variable | what it sets |
|---|---|
| `OUTLAY_DATA` | the folder of data sets |
| `OUTLAY_STORE` | the folder, or the URL, of kept artifacts ([store](store.md)) |
| `OUTLAY_STORE_QUOTA` | the most that folder, or the local copy of that URL, may hold, such as `20G` |
| `OUTLAY_CACHE` | the folder, in place of `~/.cache/outlay`, of the store and of local copies of URLs |
| `OUTLAY_PRECISION` | `bf16` or `fp32`: what `--precision auto` means here, in place of a measurement ([training](training.md)) |

A path may begin with `~` or `~user` wherever one is given: in an option, a variable, a task or study file. Where there is
no home folder that can be written, store and caches lie in `outlay-runs/cache` of the current folder, which is said. What
says what is asked for (`--budget`, `--strategies`, `--seed` and the like) is given once; any other option of one value may
be repeated, and the last one counts.

| exit | what it says |
|---|---|
| 0 | done; of several points at least one has a result |
| 1 | refused or failed, in one line on standard error; also where no point has a result (N/A), or one failed |
| 2 | the command is written wrongly: an unknown option, a missing value |
| 75 | labels are ordered and not delivered yet; the same command goes on, and nothing is ordered or paid twice |
| 130 | Ctrl-C; the same command goes on where it was |
| 141 | whoever read the output stopped early |

A command that ends with 1 because of its points has printed, and written, what there is.

**Nothing is bought before everything that can be known is checked**: models, their tokenizers and the lengths they read, labels
that they can spell, data, prices and their units, every run of a grid. `run` and `compare` into a folder that holds a report go
on with it where every score in it is asked for again (the same command; more budgets, more seeds). Else they refuse;
`--overwrite` puts the new report in its place, and leaves the ledger and the runs. The single steps, `evaluate` among them,
refuse in the same way.
"""


def render() -> str:
    """The page, from the commands as they are."""
    return HEAD + "".join(_section(words, command) for words, command in commands().items())


def _section(words: tuple[str, ...], command: Any) -> str:
    usage = " ".join(("outlay", *words, *(a.metavar or a.name.upper() for a in arguments_of(command))))
    required = [f"{p.opts[0]} {p.name.upper()}" for p in command.params if p.param_type_name == "option" and p.required]
    lines = [f"\n## {' '.join(words)}\n", " ".join((command.help or "").split()) + "\n"]
    lines.append(f"```\n{' '.join((usage, *required))} [OPTIONS]\n```\n")
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    # As on the help page: arguments, options without a heading, then heading by heading.
    headings = dict.fromkeys(_heading(p) for p in sorted(shown, key=lambda p: _heading(p) is not None))
    rows = []
    for heading in headings:
        rows += [] if heading is None else [f"| **{heading}** | | |"]
        rows += [_row(p) for p in shown if _heading(p) == heading]
        if heading is None and isinstance(command, StrategyCommand):
            rows += ["| **Strategies** | | |", *(f"| `{name}` | {says} |  |" for name, says in strategy_rows())]
    if rows:
        lines += ["| option | what it does | default |\n|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _heading(parameter: Any) -> str | None:
    """The heading of an option on the help page."""
    heading = getattr(parameter, "rich_help_panel", None)
    return heading if isinstance(heading, str) else None


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = (*parameter.opts, *parameter.secondary_opts)
        name = ", ".join(f"`{option}`" for option in names if option not in NOT_SHOWN)
    # One that is needed has no default, and an empty one or a switch that is off need not be said.
    has_default = not parameter.required and parameter.default is not None and parameter.default is not False
    default = "required" if parameter.required else f"`{parameter.default}`" if has_default else ""
    said = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {name} | {said} | {default} |"


def test_the_page_of_commands_is_current() -> None:
    assert CLI_PAGE.read_text(encoding="utf-8") == render(), "write it anew: python -m tests.test_docs"


def test_every_command_is_mentioned() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in (CLI_PAGE, ROOT / "README.md"))
    for words in commands():
        assert f"outlay {' '.join(words)}" in told


# --- docs/training.md: every setting ---------------------------------------------------------------------------------

SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- end of settings -->)", re.S)


def settings_tables() -> str:
    """Both tables, from the declarations."""
    head = "| setting | in a task file | option | what it decides | value | default |\n|---|---|---|---|---|---|\n"
    train, teach = (setting_fields(each).values() for each in (TrainSettings, TeachSettings))
    of_tasks = {each.name for each in train if each.about.in_task}
    tables = (
        "".join(_setting_row(each, in_task=each.name in of_tasks) for each in train),
        "".join(_setting_row(each, in_task=False) for each in teach),
    )
    return "\n".join(head + table for table in tables)


def _setting_row(setting: SettingField, *, in_task: bool) -> str:
    about = setting.about
    values = (*about.asked, *about.choices)
    limits = ", ".join(f"`{value}`" for value in values) or setting.limit_words or setting.type_words
    left_open = about.none or about.left_open or f"`{about.asked[0] if about.asked else setting.default}`"
    cells = (
        f"`{setting.name}`",
        "yes" if in_task else "",
        f"`--{setting.option}`" if about.on_line else "",
        about.says.replace("``", "`"),
        limits,
        "by family and role" if setting.default is MISSING else left_open,
    )
    return f"| {' | '.join(cells)} |\n"


def test_the_tables_of_settings_are_current() -> None:
    [written] = SETTINGS.findall(TRAINING_PAGE.read_text(encoding="utf-8"))
    assert written == settings_tables(), "write them anew: python -m tests.test_docs"


# --- commands that are written down ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A command line in a page; a ``whole`` one stands in a block and can be copied, others are mentioned in passing."""

    page: str
    line: str
    whole: bool


def written() -> Iterator[Written]:
    for page in PAGES:
        yield from _written_in(page.name, page.read_text(encoding="utf-8"))


def _written_in(name: str, text: str) -> Iterator[Written]:
    for block in FENCE.finditer(text):
        for line in block["body"].replace("\\\n", " ").splitlines():
            if (found := COMMAND_LINE.match(line.strip())) is not None:
                yield Written(name, found["rest"] or "", whole=True)
    for mention in INLINE.finditer(FENCE.sub("", text)):
        yield Written(name, " ".join(mention[1].split()), whole=False)


def problem(line: str, *, whole: bool) -> str | None:
    """What is wrong with the words after `outlay`; None when nothing is."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    stop = next((i for i, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
    words = [word for word in words[:stop] if word not in ("[OPTIONS]", "...")]
    if words and words[0] in ("--help", "-h", "--version"):
        return None
    known = commands()
    n_names = next((n for n in (2, 1) if tuple(words[:n]) in known), 0)
    if not n_names:
        is_group = len(words) == 1 and any(name[0] == words[0] for name in known)
        return None if is_group and not whole else f"there is no command {' '.join(words[:2])!r}"
    return _wrong_parameters(known[tuple(words[:n_names])], words[n_names:], whole=whole)


def _wrong_parameters(command: Any, words: list[str], *, whole: bool) -> str | None:
    options, given, n_arguments = options_of(command), set(), 0
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            n_arguments += 1
            continue
        name, equals, _ = word.partition("=")
        if name not in options:
            return f"there is no option {name!r}"
        given.add(name)
        takes_value = options[name] is not None and not options[name].is_flag
        if takes_value and not equals and next(rest, None) is None and whole:
            return f"{name!r} needs a value"
    takes_any = any(each.nargs == -1 for each in arguments_of(command))
    if n_arguments > len(arguments_of(command)) and not takes_any:
        return f"{n_arguments} arguments, it takes {len(arguments_of(command))}"
    if whole and not {"--help", "-h"} & given:
        required = [p for p in command.params if p.required]
        n_required = sum(p.param_type_name == "argument" for p in required)
        missing = [p.opts[0] for p in required if p.param_type_name == "option" and not set(p.opts) & given]
        if n_arguments < n_required:
            return f"{n_arguments} arguments, it needs {n_required}"
        if missing:
            return f"{missing[0]} is required"
    return None


def test_every_command_line_in_the_pages_can_be_typed() -> None:
    found = list(written())
    assert len(found) > 10
    wrong = [f"{w.page}: outlay {w.line}: {what}" for w in found if (what := problem(w.line, whole=w.whole))]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "whole", "says"),
    [
        ("run multipit_id --budget 300 --strategy distill", True, None),
        ("run multipit_id --budget=300 --json | head -3 --lines", True, None),
        ("compare multipit_id --budgets 300,400 # a comment", True, None),
        ("run", False, None),
        ("ledger", False, None),
        ("run multipit_id", True, "--budget is required"),
        ("run --budget 3", True, "0 arguments, it needs 1"),
        ("run a b --budget 3", True, "2 arguments, it takes 1"),
        ("run a --budget", True, "'--budget' needs a value"),
        ("run a --budget 3 --fast", True, "there is no option '--fast'"),
        ("plan a --budget 3", True, "there is no command 'plan a'"),
        ("ledger sign", False, "there is no command 'ledger sign'"),
        ("ledger", True, "there is no command 'ledger'"),
    ],
)
def test_the_check_finds_what_is_wrong(line: str, whole: bool, says: str | None) -> None:
    assert problem(line, whole=whole) == says


def test_commands_are_found_wherever_they_stand() -> None:
    page = (
        "See `outlay prices --json` and\n`outlay ledger\nverify DIR`.\n\n```sh\n$ outlay demo\n"
        "OUTLAY_DATA=data uv run outlay run a \\\n    --budget 3\noutlay: an error\n.venv/bin/outlay prices\n```\n"
    )
    assert [(w.line, w.whole) for w in _written_in("page", page)] == [
        ("demo", True),
        ("run a      --budget 3", True),
        ("prices", True),
        ("prices --json", False),
        ("ledger verify DIR", False),
    ]


# --- links -----------------------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return [link for pattern in (LINK, SOURCE) for link in pattern.findall(prose)] + re.findall(
        r"!\[[^\]]*\]\(([^)\s]+)\)", prose
    )


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leads out of the project"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {link}"


def test_links_are_found_wherever_they_stand() -> None:
    page = (
        '[a](one.md) ![b](two.png "words") [![c](three.svg)](four.md#part) <img alt="d" src="five.png"> `[no](no.md)`\n'
        "```\n[no](no.md)\n```\n"
    )
    assert set(links(page)) == {"one.md", "two.png", "three.svg", "four.md#part", "five.png"}
    assert anchors("# What `task check` says\n## Hold, act, settle\n") == {"what-task-check-says", "hold-act-settle"}


if __name__ == "__main__":
    CLI_PAGE.write_text(render(), encoding="utf-8")
    page = TRAINING_PAGE.read_text(encoding="utf-8")
    TRAINING_PAGE.write_text(SETTINGS.sub(lambda _: settings_tables(), page), encoding="utf-8")
