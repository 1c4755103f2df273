"""Groups of options: a command takes one dataclass for each group, and the command line has all options side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from outlay.settings import SettingField, TeachSettings, TrainSettings


_OLD_METHOD = "peft"
"""Option that is now ``--method``, read for one version (`outlay.settings.flat_settings`)."""


def option(
    *names: str,
    panel: str,
    says: str,
    least: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
) -> Any:
    """Return an option under a heading of the help page; ``least`` and ``most``: limits of a number."""
    return typer.Option(*names, help=says, rich_help_panel=panel, min=least, max=most, metavar=metavar)


@dataclass(frozen=True, slots=True)
class SettingOptions:
    """Options of settings, as the annotation of a parameter that takes the given ones by name.

    ``of``: ``train`` or ``teach``; ``headings``: those of the settings that are options here, `None` = every one.
    """

    of: str
    headings: tuple[str, ...] | None = None

    def settings(self) -> list[SettingField]:
        """Return the settings that are options."""
        from outlay.settings import setting_fields

        found = setting_fields(self._class()).values()
        return [
            each
            for each in found
            if each.about.on_line and (self.headings is None or each.about.heading in self.headings)
        ]

    def _class(self) -> type[TrainSettings] | type[TeachSettings]:
        from outlay.settings import TeachSettings, TrainSettings

        return TrainSettings if self.of == "train" else TeachSettings

    def parameters(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield name, annotation and default of each option.

        A training's settings have the defaults of a role, and so none here; a teacher's have their own.
        """
        for each in self.settings():
            default = None if self.of == "train" else each.default
            plain: Any = each.type if default is not None else each.type | None
            name = each.option.replace("-", "_")
            yield name, Annotated[plain, _option_of(each, is_switch=default is False)], default
        if self.of == "train":
            yield _OLD_METHOD, Annotated[str | None, typer.Option(f"--{_OLD_METHOD}", hidden=True)], None

    def values(self, given: Any) -> dict[str, Any]:
        """Return the settings that were given, by their names."""
        values = {each.name: getattr(given, each.option.replace("-", "_")) for each in self.settings()}
        if self.of == "train":
            values[_OLD_METHOD] = getattr(given, _OLD_METHOD)
        return {name: value for name, value in values.items() if value is not None}


def _option_of(setting: SettingField, *, is_switch: bool) -> Any:
    from outlay.settings import is_none_by_default

    about, name = setting.about, f"--{setting.option}"
    names = [f"{name}/--no-{setting.option}" if setting.type is bool and not is_switch else name]
    names += [f"--{short}" for short in setting.short_options]
    default = f" (default: {about.none})" if about.none and is_none_by_default(setting.name) else ""
    if about.asked:
        default = f" (default: {about.left_open or about.asked[0]})"
    return option(*names, panel=about.heading, says=_on_the_line(about.says) + default)


def _on_the_line(says: str) -> str:
    """Return a setting's description with names of settings as options, and values without marks."""
    from outlay.settings import TeachSettings, TrainSettings, setting_fields

    known = {**setting_fields(TeachSettings), **setting_fields(TrainSettings)}

    def plain(found: re.Match[str]) -> str:
        return f"--{known[found[1]].option}" if found[1] in known else found[1]

    return re.sub(r"``(.+?)``", plain, says)


@dataclass(frozen=True, slots=True)
class _Part:
    """Parameter of a command's function: its options, and its value from the given ones."""

    name: str
    options: tuple[tuple[str, Any, Any], ...]
    value: Callable[[Any], Any]


def _part(name: str, hint: Any, default: Any) -> _Part:
    about = get_args(hint)[1] if get_origin(hint) is Annotated else None
    if isinstance(about, SettingOptions):
        return _Part(name, tuple(about.parameters()), about.values)
    if is_dataclass(hint) and isinstance(hint, type):
        group: Any = hint
        hints = get_type_hints(group, include_extras=True)
        options = tuple((each.name, hints[each.name], each.default) for each in fields(group))
        return _Part(name, options, lambda given: group(*(getattr(given, each.name) for each in fields(group))))
    return _Part(name, ((name, hint, default),), lambda given: getattr(given, name))


def grouped(command: Callable[..., None]) -> type[Any]:
    """Return a command as a class for typer, whose fields are options and whose construction runs the command.

    Parameters of a dataclass stand for its fields, those annotated with `SettingOptions` for settings.
    """
    hints = get_type_hints(command, include_extras=True)
    parts = [
        _part(name, hints[name], MISSING if each.default is Parameter.empty else each.default)
        for name, each in signature(command).parameters.items()
    ]

    def run(given: Any) -> None:
        command(**{part.name: part.value(given) for part in parts})

    return make_dataclass(
        command.__name__,
        [(name, hint, field(default=default)) for part in parts for name, hint, default in part.options],
        namespace={"__post_init__": run, "__doc__": command.__doc__, "__module__": command.__module__},
        kw_only=True,
    )
