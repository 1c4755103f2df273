"""Help pages in plain text, under the headings that commands and options name.

Drawing them with boxes takes longer to load than everything else that a help page needs, and leaves half the width for words.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from outlay.errors import UsageError

GIVEN_ONCE = frozenset(
    ("budget", "budgets", "strategy", "strategies", "seed", "seeds", "teachers", "students", "general_student", "tasks")
)
"""Options with one value that decide the request: a second one would silently replace the first."""

NOT_SHOWN = ("--here", "--lr", "--warmup")
"""Further names of options, older or shorter, that are read and stand on no help page."""


MAY_STAND_ALONE = {"--wait": "10"}
"""Options whose value may be left out, with the value that they have then."""


def with_values(args: Sequence[str]) -> list[str]:
    """Return arguments with a value behind each option of `MAY_STAND_ALONE` that has none."""
    words: list[str] = []
    for word, after in zip_longest(args, args[1:], fillvalue=""):
        words.append(word)
        if word in MAY_STAND_ALONE and not after[:1].isdecimal():
            words.append(MAY_STAND_ALONE[word])
    return words


class Command(TyperCommand):
    """Command that refuses a second value of a single-valued option, with a help page that lists options under headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse arguments as click does, and refuse some options that are given twice.

        Raises:
            UsageError: an option of `GIVEN_ONCE` is given twice.
        """
        args = with_values(args)
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            times = Counter(each.name for each in order if each.name in GIVEN_ONCE)
            twice = next((each for each in order if times[each.name] > 1), None)
            if twice is not None:
                raise UsageError(f"{twice.opts[0]} is given {times[twice.name]} times; give it once")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command as click does, once caches have a place and paths are expanded."""
        from outlay.storage.locations import settle_caches

        settle_caches()
        _expand_places(self, ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options without a heading, then heading by heading."""
        _write_parameters(self.get_params(ctx), ctx, formatter)


class StrategyCommand(Command):
    """Command that takes strategies, which its help page explains behind the options without a heading."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options without a heading, the strategies, then heading by heading."""
        _write_parameters(self.get_params(ctx), ctx, formatter, second=("Strategies", strategy_rows()))


def strategy_rows() -> list[tuple[str, str]]:
    """Return names and sentences of the strategies, with the options that a strategy reads beside those of all."""
    from outlay.plan.strategy_words import NEEDS, STRATEGY_WORDS

    return [
        (name, f"{words[0].upper()}{words[1:]}" + (f" ({', '.join(NEEDS[name])})." if name in NEEDS else "."))
        for name, words in STRATEGY_WORDS.items()
    ]


class Group(TyperGroup):
    """Group with a help page that lists commands under headings, each with its first sentence in full."""

    def invoke(self, ctx: Any) -> Any:
        """Run the group as click does, once the paths of one that does something by itself are expanded."""
        if self.invoke_without_command:
            _expand_places(self, ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options, then commands."""
        _write_parameters(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write commands heading by heading, in the order in which they were added."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (getattr(command, "rich_help_panel", None), (name, command.get_short_help_str(limit=400)))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        _write_sections(rows, "Commands", formatter)


@dataclass(frozen=True, slots=True)
class Later:
    """Command or group that is loaded when used. ``place``: module of `outlay.cli` and name; ``says``: text of its help page."""

    place: str
    says: str
    heading: str | None = None
    cls: type[Command] = Command

    def load(self) -> Any:
        """Return the command's function, or the group's `typer.Typer`."""
        module, _, name = self.place.partition(".")
        return getattr(import_module(f"outlay.cli.{module}"), name)

    def build(self, name: str) -> Any:
        """Return the click command."""
        return click_command(self.load(), name, self.says, self.cls)


def click_command(found: Any, name: str, says: str, cls: type[Command] = Command) -> Any:
    """Return the click command of a function, or of a group's `typer.Typer`; ``says``: text of its help page."""
    plain = found if isinstance(found, typer.Typer) else typer.Typer(add_completion=False)
    plain.rich_markup_mode = None
    plain.pretty_exceptions_enable = False
    if plain is found:
        plain.info.cls, plain.info.help = Group, says
        for each in plain.registered_commands:
            each.cls = Command
        command: Any = typer.main.get_group(plain)
    else:
        plain.command(name, cls=cls, help=says)(found)
        command = typer.main.get_command(plain)
    command.name = name
    return command


def _expand_places(command: Any, ctx: Any) -> None:
    """Expand ``~`` in the paths that a command was given."""
    for name in places_of(command.callback):
        ctx.params[name] = _expanded(ctx.params[name])


def places_of(command: Any) -> tuple[str, ...]:
    """Return the parameters of a command's function that are paths, or lists of paths."""
    return tuple(name for name, hint in get_type_hints(inspect.unwrap(command)).items() if Path in _parts(hint))


def _parts(hint: Any) -> set[Any]:
    """Return a type and the types that it consists of."""
    return {hint}.union(*(_parts(each) for each in get_args(hint)))


def _expanded(value: Any) -> Any:
    """Expand ``~`` in a path or in several; older typers pass them as strings."""
    from outlay.storage.paths import expand

    if isinstance(value, list | tuple):
        return type(value)(_expanded(each) for each in value)
    return value if value is None else type(value)(expand(str(value)))


class Laters(Mapping[str, Any]):
    """Mapping of commands by name that builds each when first used."""

    def __init__(self, laters: Mapping[str, Later]) -> None:
        self._laters = laters
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._laters[name].build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._laters)

    def __len__(self) -> int:
        return len(self._laters)


def root(laters: Mapping[str, Later]) -> type[Group]:
    """Return the group of all commands, whose help page loads none of them."""

    found = Laters(laters)

    class Root(Group):
        @property
        def commands(self) -> Any:
            """Return every command by name."""
            return found

        @commands.setter
        def commands(self, registered: Any) -> None:
            """Ignore commands that are registered with typer; there are none."""

        def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
            """Write the line of each command, without loading it."""
            _write_sections(((each.heading, (name, each.says)) for name, each in laters.items()), "Commands", formatter)

    return Root


def _write_parameters(
    parameters: Iterable[Any],
    ctx: Any,
    formatter: Any,
    second: tuple[str, Sequence[tuple[str, str]]] = ("", ()),
) -> None:
    """Write arguments, options without a heading, a ``second`` list under its heading, then the options under theirs."""
    rows: list[tuple[Any, tuple[str, str]]] = []
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            plain = "Arguments" if parameter.param_type_name == "argument" else None
            names, says = record
            for name in NOT_SHOWN:
                names = names.replace(f", {name} ", " ")
            rows.append((plain or getattr(parameter, "rich_help_panel", None), (names, says)))
    rows += [(second[0], row) for row in second[1]]
    order = ("Arguments", None, second[0])
    rows.sort(key=lambda row: order.index(row[0]) if row[0] in order else len(order))
    _write_sections(rows, "Options", formatter)


def _write_sections(rows: Iterable[tuple[Any, tuple[str, str]]], unnamed: str, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, row in rows:
        sections.setdefault(heading if isinstance(heading, str) else unnamed, []).append(row)
    for heading, lines in sections.items():
        with formatter.section(heading):
            formatter.write_dl(lines)
