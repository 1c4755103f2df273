"""Hyper-parameters that a task's file sets, by family and role; what it leaves open is derived elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from outlay.errors import UsageError
from outlay.hardware.precision import without_auto
from outlay.settings import (
    OLD_METHOD_KEY,
    PeftSettings,
    SettingField,
    TrainSettings,
    flat_settings,
    method_options,
    peft_methods,
    setting_fields,
)
from outlay.spec import Family
from outlay.tasks.yaml_file import YamlBlock

Role = Literal["teacher", "student", "distil"]

_SETTINGS = tuple(each for each in setting_fields(TrainSettings).values() if each.about.in_task)


def _key(setting: SettingField) -> Any:
    """Return type and default of a setting's key, as `pydantic.create_model` takes them."""
    about = setting.about
    bounds = {name: bound for name in ("gt", "ge", "lt", "le") if (bound := getattr(about, name)) is not None}
    plain: Any = Literal[(*about.asked, *about.choices)] if about.choices else setting.type
    return Annotated[plain | None, Field(description=about.says, **bounds)], None


_Keys: Any = create_model("_Keys", __base__=YamlBlock, **{each.name: _key(each) for each in _SETTINGS})


class HyperParameters(_Keys):  # type: ignore[misc]
    """Overrides of training hyper-parameters; what is not given is derived."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """Take a method apart that brings its own settings, and read what has another name under that too."""
        try:
            return flat_settings(given) if isinstance(given, Mapping) else given
        except UsageError as error:
            raise ValueError(str(error)) from None

    def given(self) -> dict[str, Any]:
        """Return the hyper-parameters that were set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Roles(YamlBlock):
    """Hyper-parameters by role."""

    teacher: HyperParameters = HyperParameters()
    """The large model."""
    student: HyperParameters = HyperParameters()
    """The compact model, trained on labels."""
    distil: HyperParameters = HyperParameters()
    """The compact model, trained on the teacher's targets."""

    def of(self, role: Role) -> dict[str, Any]:
        """Return what is set for one role."""
        return {"teacher": self.teacher, "student": self.student, "distil": self.distil}[role].given()


_LATER = {"pooling", "pair"} | {
    name for name, (kind, _) in method_options().items() if not issubclass(kind, PeftSettings)
}
"""Settings that came with the methods; a task that sets none of them has the digest it had before."""


def settings_as_before(blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dumped settings of a task under the names of before, without the settings of methods where it names none.

    A digest of a task is made of these, so that it stays what it was.
    """
    found: dict[str, Any] = {}
    for name, value in blocks.items():
        if name == "method":
            found |= {OLD_METHOD_KEY: value} if value is None or value in peft_methods() else {name: value}
        elif isinstance(value, Mapping):
            found[name] = settings_as_before(value)
        elif value is not None or name not in _LATER:
            found["lr" if name == "learning_rate" else name] = value
    return found


def overrides_of(
    task: TrainingOverrides | None, family: Family, role: Role, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is set for a role: by the task, then by the user; ``precision: auto`` leaves that of the run.

    A method that brings its own settings is taken apart (`outlay.settings.flat_settings`).
    """
    of_task = {} if task is None else task.settings_for(family, role)
    return without_auto({**of_task, **flat_settings(given)})


class TrainingOverrides(Roles):
    """Hyper-parameters by role for every family, and for one family alone, which win."""

    encoder: Roles = Roles()
    """Models that read a text and pick from the labels, such as BERT."""
    seq2seq: Roles = Roles()
    """Models that read a text and write the answer, such as T5."""
    causal: Roles = Roles()
    """Models that go on with a text, such as GPT-2."""

    def settings_for(self, family: Family, role: Role) -> dict[str, Any]:
        """Return the overrides of a role of a family, under the names of the training settings."""
        families = {"encoder": self.encoder, "seq2seq": self.seq2seq, "causal": self.causal}
        return without_auto({**self.of(role), **families[family].of(role)})
