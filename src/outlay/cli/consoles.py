"""Rich console for tables, bars and lines of progress."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, HighlighterType, JustifyMethod, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from outlay.text.display import visible_lines


class PlainConsole(Console):
    """Console that escapes control characters, so that no text can steer the terminal."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Escape a text before its width is measured, so that columns stay straight, and read its markup."""
        return super().render_str(
            visible_lines(text),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to print, with the control characters of texts escaped and those of rich itself kept."""
        for text, style, control in super().render(renderable, options):
            is_own = control is not None or text == "\n"
            yield Segment(text, style, control) if is_own else Segment(visible_lines(text), style)
