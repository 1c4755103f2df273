"""Help pages in plain text, under the headings that commands and options name.

Drawing them with boxes takes longer to load than everything else that a help page needs, and leaves half the width for words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose options stand under their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options without a heading, then heading by heading."""
        _write_parameters(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """Commands under their headings, each with its first sentence in full."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options, then commands."""
        _write_parameters(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Heading by heading, in the order in which they were added."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (getattr(command, "rich_help_panel", None), (name, command.get_short_help_str(limit=400)))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        _write_sections(rows, "Commands", formatter)


def _write_parameters(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    rows = []
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            plain = "Arguments" if parameter.param_type_name == "argument" else None
            rows.append((plain or getattr(parameter, "rich_help_panel", None), record))
    # Arguments first, then options without a heading.
    rows.sort(key=lambda row: (row[0] != "Arguments", row[0] is not None))
    _write_sections(rows, "Options", formatter)


def _write_sections(rows: Iterable[tuple[Any, tuple[str, str]]], unnamed: str, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, row in rows:
        sections.setdefault(heading if isinstance(heading, str) else unnamed, []).append(row)
    for heading, lines in sections.items():
        with formatter.section(heading):
            formatter.write_dl(lines)
