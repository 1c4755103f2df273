"""Settings as fields of dataclasses, each declared once with its type, its limits and its effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from outlay.errors import UsageError

TRAINING, DISTILLATION, ANSWERS, RUNNING = "Training", "Distillation", "Answers", "How it is run"
"""Headings of settings on a help page."""

SHORT_NAMES = {"lr": "learning_rate", "warmup": "warmup_fraction"}
"""Settings by names that are read in the place of their own wherever settings are given, and never written."""

_TYPE_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Setting:
    """Limits and description of one setting.

    ``says``: one or two sentences, with names of settings and values between double backticks; ``gt``, ``ge``, ``lt``, ``le``:
    bounds of a number; ``choices``: values of a text; ``asked``: choices beside them that are resolved before settings are made;
    ``none``: what ``None`` stands for; ``in_task``, ``on_line``: whether a task file and the command line have it;
    ``left_open``: what it is where nobody names it, if that is not its default.
    """

    says: str
    heading: str = TRAINING
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: Sequence[str] = ()
    asked: tuple[str, ...] = ()
    none: str = ""
    in_task: bool = True
    on_line: bool = True
    left_open: str = ""


@dataclass(frozen=True, slots=True)
class SettingField:
    """A setting as a field of `TrainSettings` or `TeachSettings`; ``default``: `dataclasses.MISSING` where it has none."""

    name: str
    type: type
    can_be_none: bool
    default: Any
    about: Setting

    @property
    def option(self) -> str:
        """Return the setting's name on the command line, without dashes before it."""
        return self.name.replace("_", "-")

    @property
    def short_options(self) -> tuple[str, ...]:
        """Return further names on the command line that help pages leave out, without dashes before them."""
        return tuple(short.replace("_", "-") for short, name in SHORT_NAMES.items() if name == self.name)

    @property
    def type_words(self) -> str:
        """Return the type in words, such as "a whole number or none"."""
        return _TYPE_WORDS[self.type] + (" or none" if self.can_be_none else "")

    @property
    def limit_words(self) -> str:
        """Return the limits in words, such as "above 0 and at most 1, or none"; empty for a setting without limits."""
        return f"{words}, or none" if (words := self._bounds()) and self.can_be_none else words

    def _bounds(self) -> str:
        about = self.about
        if about.choices:
            return one_of(about.choices)
        if about.ge is not None and about.le is not None:
            return f"{_TYPE_WORDS[self.type]} from {about.ge} to {about.le}"
        if about.ge is not None:
            return f"{about.ge} or more" if about.lt is None else f"from {about.ge} to below {about.lt}"
        if about.gt is None:
            return ""
        if self.type is int:
            return f"at least {about.gt + 1}"
        if about.lt is not None:
            return f"between {about.gt} and {about.lt}"
        return f"above {about.gt}" + ("" if about.le is None else f" and at most {about.le}")

    def is_of_type(self, value: object) -> bool:
        """Return whether a value has the setting's type; a truth value is no number, a whole number is one."""
        if value is None:
            return self.can_be_none
        if isinstance(value, bool):
            return self.type is bool
        return isinstance(value, (int, float) if self.type is float else self.type)

    def is_within_limits(self, value: Any) -> bool:
        """Return whether a value of the setting's type is within the limits."""
        about = self.about
        if value is None:
            return True
        if about.choices:
            return value in about.choices
        return (
            (about.gt is None or value > about.gt)
            and (about.ge is None or value >= about.ge)
            and (about.lt is None or value < about.lt)
            and (about.le is None or value <= about.le)
        )


_found: dict[type[Any], Mapping[str, SettingField]] = {}


def own_fields(settings: type[Any]) -> Mapping[str, SettingField]:
    """Return the settings that a dataclass declares, by name and in order; fields without a `Setting` are left out."""
    if settings in _found:
        return _found[settings]
    hints = get_type_hints(settings, include_extras=True)
    found = {}
    for each in fields(settings):
        plain, *marks = get_args(hints[each.name]) or (hints[each.name],)
        about = next((mark for mark in marks if isinstance(mark, Setting)), None)
        if about is not None:
            types = [part for part in get_args(plain) or (plain,) if part is not NoneType]
            found[each.name] = SettingField(each.name, types[0], NoneType in get_args(plain), each.default, about)
    _found[settings] = found
    return found


def one_of(names: Sequence[str]) -> str:
    """Return a choice in words, such as "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def check_names(known: Collection[str], overrides: Mapping[str, Any], what: str) -> None:
    """Refuse names that are no settings; ``what``: training or teaching, for the message.

    Raises:
        UsageError: an unknown name; lists the known ones.
    """
    for name in overrides:
        if name not in known:
            raise UsageError(f"unknown {what} setting {name!r}; known: {', '.join(sorted(known))}")


def check_fields(settings: Any, prefix: str = "") -> None:
    """Refuse a value of another type, or outside its limits; ``prefix``: text before the setting's name in the message."""
    for name, each in own_fields(type(settings)).items():
        value = getattr(settings, name)
        if not each.is_of_type(value):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be {each.type_words}")
        if not each.is_within_limits(value):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be {each.limit_words}")
