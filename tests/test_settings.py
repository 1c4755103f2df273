"""Training settings: limits, overrides, plain values."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from outlay.errors import UsageError
from outlay.settings import TrainSettings

GOOD = TrainSettings(epochs=3, batch_size=8, learning_rate=1e-3)


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
    ],
)
def test_each_setting_has_a_limit_and_the_error_names_it(name: str, bad: object, good: object) -> None:
    assert getattr(GOOD.changed({name: good}), name) == good
    with pytest.raises(UsageError) as refused:
        GOOD.changed({name: bad})
    assert name in str(refused.value)
    assert repr(bad) in str(refused.value)
    assert "must be" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        GOOD.changed({"lr": 0.1})
    assert all(field.name in str(refused.value) for field in fields(TrainSettings))


def test_changing_nothing_changes_nothing_and_the_original_stays() -> None:
    assert GOOD.changed({}) == GOOD
    assert GOOD.changed({"epochs": 9}).epochs == 9
    assert GOOD.epochs == 3


def test_plain_values_hold_every_field_and_survive_json() -> None:
    plain = GOOD.to_json()
    assert set(plain) == {field.name for field in fields(TrainSettings)}
    assert TrainSettings(**json.loads(json.dumps(plain))) == GOOD
