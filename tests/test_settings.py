"""Training settings: limits, overrides, plain values."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
from pydantic import ValidationError

from outlay.errors import UsageError
from outlay.settings import (
    SHORT_NAMES,
    Ia3Settings,
    LoraSettings,
    TeachSettings,
    TrainSettings,
    default_settings,
    is_none_by_default,
    method_options,
    role_settings,
    setting_fields,
)
from outlay.tasks.overrides import HyperParameters, TrainingOverrides, overrides_of, settings_as_before

GOOD = TrainSettings(epochs=3, batch_size=8, learning_rate=1e-3)
GOOD_TEACHING = TeachSettings()


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("epochs", 0, 1),
        ("batch_size", 0, 1),
        ("learning_rate", 0.0, 0.5),
        ("learning_rate", 1.0, 0.5),
        ("learning_rate", float("nan"), 0.5),
        ("warmup_fraction", 1.0, 0.0),
        ("warmup_fraction", -0.1, 0.9),
        ("weight_decay", -0.1, 0.0),
        ("max_grad_norm", 0.0, 0.1),
        ("patience", 0, None),
        ("dropout", 1.0, None),
        ("dropout", -0.1, 0.0),
        ("temperature", 0.0, 0.5),
        ("precision", "fp16", "fp32"),
        ("objective", "both", "published"),
        ("divergence", "kl", "reverse_kl"),
        ("divergence", "jsd", "js"),
        ("js_beta", 0.0, 0.1),
        ("js_beta", 1.0, 0.9),
        ("gold_weight", 1.0, 0.99),
        ("gold_weight", -0.1, 0.0),
        ("micro_batch_size", 0, None),
        ("optimizer", "sgd", "adafactor"),
        ("gradient_checkpointing", 1, True),
        ("gradient_checkpointing", None, False),
        ("eval_steps", 0, None),
        ("eval_steps", 1.5, 1),
        ("epochs", True, 1),
        ("lora_rank", 0, 1),
        ("lora_rank", 1.5, 2),
        ("lora_rank", True, 2),
        ("lora_alpha", 0.0, 0.1),
        ("lora_alpha", "x", 2),
    ],
)
def test_each_setting_has_a_limit_and_the_error_names_it(name: str, bad: object, good: object) -> None:
    assert GOOD.changed({name: good}).to_json()[name] == good
    with pytest.raises(UsageError, match=rf"\A{name} .*{re.escape(repr(bad))}.*\Z"):
        GOOD.changed({name: bad})


def test_weights_in_bf16_need_the_optimiser_that_rounds_at_random() -> None:
    good = GOOD.changed({"precision": "bf16_weights", "optimizer": "adafactor"})
    assert good.precision == "bf16_weights"
    for optimizer in ("adamw", "adamw_8bit"):
        with pytest.raises(UsageError, match=f"optimizer .*'{optimizer}'.* adafactor .*precision .*bf16"):
            good.changed({"optimizer": optimizer})


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'method_settings'"):
        GOOD.changed({"method_settings": ()})
    with pytest.raises(UsageError) as refused:
        GOOD.changed({"rate": 0.1})
    known = str(refused.value).partition("known: ")[2].split(", ")
    assert known == sorted(setting_fields(TrainSettings))


def test_short_names_are_read_and_never_written() -> None:
    """In settings, a task file and a task's digest alike; digests hold the name that task files of before had."""
    assert GOOD.changed({"lr": 0.1, "warmup": 0.5}) == GOOD.changed({"learning_rate": 0.1, "warmup_fraction": 0.5})
    for given in ({"lr": 0.1}, {"learning_rate": 0.1}):
        task = TrainingOverrides.model_validate({"student": given})
        assert overrides_of(task, "encoder", "student", {}) == {"learning_rate": 0.1}
        assert settings_as_before(task.model_dump())["student"]["lr"] == 0.1
        assert overrides_of(None, "encoder", "student", given) == {"learning_rate": 0.1}
    with pytest.raises(UsageError, match="learning_rate is given twice, under its two names"):
        GOOD.changed({"lr": 0.1, "learning_rate": 0.1})
    assert not set(SHORT_NAMES) & set(setting_fields(TrainSettings))


def test_changing_nothing_changes_nothing_and_the_original_stays() -> None:
    assert GOOD.changed({}) == GOOD
    assert GOOD.changed({"epochs": 9}).epochs == 9
    assert GOOD.epochs == 3


def test_plain_values_hold_every_field_and_survive_json() -> None:
    plain = GOOD.to_json()
    new = {"method_settings", "method", "pooling", "pair"}
    assert set(plain) == {field.name for field in fields(TrainSettings)} - new | {"peft", "lora_rank", "lora_alpha"}
    assert TrainSettings(1, 1, 0.5).changed(json.loads(json.dumps(plain))) == GOOD


BEFORE = (
    '{"epochs": 3, "batch_size": 8, "learning_rate": 0.001, "warmup_fraction": 0.06, "weight_decay": 0.01, "max_grad_norm": 1.0, '
    '"patience": null, "dropout": null, "temperature": 1.0, "precision": "fp32", "seed": 0, "objective": "masked", '
    '"divergence": "forward_kl", "js_beta": 0.5, "gold_weight": 0.0, "micro_batch_size": null, "optimizer": "adamw", '
    '"gradient_checkpointing": false, "eval_steps": null, "eval_share": null, "batch_tokens": null, "compile": false, '
    '"peft": "PEFT", "lora_rank": RANK, "lora_alpha": ALPHA}'
)
"""What `to_json` gave before PEFT methods had settings of their own; it is hashed into keys."""


@pytest.mark.parametrize("peft", ["none", "lora", "ia3"])
@pytest.mark.parametrize(("rank", "alpha"), [(16, 32.0), (3, 9.5)])
def test_settings_of_peft_methods_stand_in_the_json_as_they_did(peft: str, rank: int, alpha: float) -> None:
    settings = GOOD.changed({"peft": peft}).changed({"lora_rank": rank}).changed({"lora_alpha": alpha})
    wanted = BEFORE.replace("PEFT", peft).replace("RANK", str(rank)).replace("ALPHA", str(alpha))
    assert json.dumps(settings.to_json()) == wanted
    assert settings == GOOD.changed({"lora_alpha": alpha, "peft": peft, "lora_rank": rank})
    adapters = {"none": (), "lora": (LoraSettings(rank, alpha),), "ia3": (Ia3Settings(),)}
    assert settings.adapters() == adapters[peft]


def test_a_tasks_file_takes_every_setting_of_every_peft_method() -> None:
    from outlay.tasks.overrides import HyperParameters

    assert method_options().keys() <= HyperParameters.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("beams", 0, 4),
        ("beams", True, 4),
        ("sample", 1, True),
        ("sample_temperature", 0.0, 0.7),
        ("top_p", 0.0, 0.9),
        ("top_p", 1.1, 1.0),
        ("max_logits", -1, 0),
        ("keep_padding", "yes", True),
        ("batch_size", 0, 1),
        ("seed", 0.5, 1),
    ],
)
def test_each_teaching_setting_has_a_limit_and_the_error_names_it(name: str, bad: object, good: object) -> None:
    assert getattr(GOOD_TEACHING.changed({name: good}), name) == good
    with pytest.raises(UsageError, match=rf"\A{name} .*{re.escape(repr(bad))}.*\Z"):
        GOOD_TEACHING.changed({name: bad})


def test_a_teacher_searches_or_samples_and_survives_json() -> None:
    with pytest.raises(UsageError, match=r"beams .*\b4\b.*\b1\b"):
        TeachSettings(beams=4, sample=True)
    with pytest.raises(UsageError, match="'epochs'"):
        GOOD_TEACHING.changed({"epochs": 3})
    settings = TeachSettings(sample=True, top_p=0.9, max_logits=0)
    assert TeachSettings(**json.loads(json.dumps(settings.to_json()))) == settings


TRIED: dict[type, tuple[object, ...]] = {
    int: (-1, 0, 1, 2, 10**6, True, "x", 0.5),
    float: (-0.1, 0.0, 1e-9, 0.5, 0.999, 1.0, 1.1, 1e9, float("nan"), "x"),
    str: ("", "none", "lora", "js", "masked", "adafactor", "fp32", "prefix", 1),
    bool: (True, False, "maybe", 7),
}


@pytest.mark.parametrize("name", [each.name for each in setting_fields(TrainSettings).values() if each.about.in_task])
def test_a_task_file_and_the_settings_accept_the_same_values(name: str) -> None:
    """Two checkers, pydantic's and our own, of one declaration."""
    each = setting_fields(TrainSettings)[name]
    for value in TRIED[each.type]:
        if each.type is int and value in (True, 0.5):
            continue  # pydantic takes a truth value for a number
        try:
            GOOD.changed({name: value})
            ours = True
        except UsageError:
            ours = False
        try:
            HyperParameters(**{each.name: value})
            theirs = True
        except ValidationError:
            theirs = False
        assert ours == theirs, value


def test_what_is_set_for_a_role_wins_over_its_run() -> None:
    found = role_settings(GOOD, {"seed": 5, "epochs": 7}, seed=3, precision="bf16")
    assert (found.seed, found.epochs, found.precision, found.batch_size) == (5, 7, "bf16", GOOD.batch_size)
    task = TrainingOverrides.model_validate({"student": {"epochs": 3, "precision": "bf16"}})
    assert overrides_of(task, "encoder", "student", {"precision": "auto", "epochs": 4}) == {"epochs": 4}
    assert overrides_of(None, "encoder", "student", {"seed": 1}) == {"seed": 1}


def test_limits_in_words() -> None:
    words = {name: each.limit_words for name, each in setting_fields(TrainSettings).items()}
    assert words["epochs"] == "at least 1"
    assert words["patience"] == "at least 1, or none"
    assert words["learning_rate"] == "between 0 and 1"
    assert words["warmup_fraction"] == "from 0 to below 1"
    assert words["weight_decay"] == "0 or more"
    assert words["temperature"] == "above 0"
    assert words["eval_share"] == "above 0 and at most 1, or none"
    assert words["optimizer"] == "adamw, adafactor or adamw_8bit"
    assert words["compile"] == ""


def test_what_is_open_by_default_is_open_for_every_role() -> None:
    assert is_none_by_default("patience")
    assert default_settings("encoder", "classification")["distil"].eval_share is not None
    assert not is_none_by_default("eval_share")
