"""Requests: whatever decides a result is in the run's id, and nothing impossible is asked."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from typing import Any

import pytest

from outlay.errors import UsageError
from outlay.plan.request import ROLES, Digests, ReplayOptions, Request, SellerSpec

DIGESTS = Digests("digest", "prices", "models")
REQUEST = Request("task", "distill", 1_000_000, dev="given", precision="bf16", digests=DIGESTS)

OTHER: dict[str, Any] = {
    "task": "other",
    "strategy": "annotate",
    "budget_micros": 1_000_001,
    "n_initial": 1,
    "seed": 1,
    "teacher": "other",
    "student": "cut:3",
    "machine": "a40",
    "student_training": "free",
    "pool_rows": 1,
    "dev": "none",
    "n_dev": 1,
    "threads": 1,
    "sellers": (SellerSpec(replay=ReplayOptions(redundancy=3)),),
    "overrides": {"teacher": {"epochs": 1}},
    "base": "other",
    "metric_model": "other",
    "precision": "fp32",
    "max_labels": 7,
    "test_rows": 7,
    **{f"digests.{each.name}": "other" for each in fields(Digests)},
}
LATER = {"base", "metric_model", "precision", "general", "max_labels", "test_rows"}
"""Fields that old requests did not have: they are said only where they say something, so that run ids stay."""
LLM = SellerSpec("llm", ReplayOptions(0.3, price_item="x"))
CROWD = SellerSpec("crowd", ReplayOptions(0.1, 3, 2.0, "label/demo"))


def _with(name: str, value: object) -> Request:
    """The request with another value of a field, or of a digest."""
    digest = name.removeprefix("digests.")
    if digest != name:
        return replace(REQUEST, digests=replace(DIGESTS, **{digest: value}))
    return replace(REQUEST, **{name: value})


def test_every_field_changes_the_run() -> None:
    # `general` is the student of `general_distill` once resolved.
    decides_nothing_itself = {"general", "digests"}
    assert {name for name in OTHER if "." not in name} == {f.name for f in fields(Request)} - decides_nothing_itself
    ids = {_with(name, value).run_id for name, value in OTHER.items()}
    assert len(ids | {REQUEST.run_id}) == len(OTHER) + 1


@pytest.mark.parametrize("name", ["human", "llm", "crowd"])
def test_every_option_of_a_seller_changes_the_run(name: str) -> None:
    options = [
        ReplayOptions(),
        ReplayOptions(error_rate=0.1),
        ReplayOptions(redundancy=3),
        ReplayOptions(seconds_per_label=1.0),
        ReplayOptions(price_item="x"),
    ]
    ids = {replace(REQUEST, sellers=(SellerSpec("other"), SellerSpec(name, each))).run_id for each in options}
    assert len(ids | {replace(REQUEST, sellers=(SellerSpec("other"),)).run_id}) == 6
    assert {field.name for field in fields(ReplayOptions)} == {
        "error_rate",
        "redundancy",
        "seconds_per_label",
        "price_item",
    }


def test_sellers_are_written_as_they_always_were_and_others_by_their_names() -> None:
    people = {"error_rate": 0.0, "redundancy": 1, "seconds_per_label": 0.0}
    both = replace(REQUEST, sellers=(SellerSpec(), LLM)).to_json()
    assert (both["seller"], both["llm_error_rate"], both["llm_price_item"]) == (people, 0.3, "x")
    assert "sellers" not in both
    three = replace(REQUEST, sellers=(SellerSpec(), LLM, CROWD)).to_json()
    crowd = {"error_rate": 0.1, "redundancy": 3, "seconds_per_label": 2.0, "price_item": "label/demo"}
    assert three == both | {"sellers": {"crowd": {"replay": crowd}}}
    # Nobody is hidden in fields that cannot say it all.
    dear = replace(LLM, replay=replace(LLM.replay, redundancy=3))
    assert set(replace(REQUEST, sellers=(SellerSpec(), dear)).to_json()["sellers"]) == {"llm"}
    assert set(replace(REQUEST, sellers=(CROWD,)).to_json()) == set(REQUEST.to_json()) - {"seller"} | {"sellers"}
    orders = [
        replace(REQUEST, sellers=each).run_id for each in ((SellerSpec(), LLM, CROWD), (CROWD, LLM, SellerSpec()))
    ]
    assert orders[0] == orders[1]


def test_the_same_request_is_the_same_run_in_every_process() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", REQUEST.run_id)
    assert replace(REQUEST).run_id == REQUEST.run_id == "dcdb84220253123d"
    assert json.loads(json.dumps(REQUEST.to_json())) == REQUEST.to_json()
    told = {field.name for field in fields(Request)} - {"digests"} | {
        "task_digest",
        "price_book",
        "models",
        "machine_digest",
    }
    assert set(REQUEST.to_json()) == told - LATER - {"sellers"} | {"seller"}
    full = replace(REQUEST, base="b", metric_model="m")
    assert full.run_id == "3541ea84a1706490"
    whole = replace(full, sellers=(SellerSpec(), LLM), precision="fp32")
    assert whole.run_id == "d4afbf9e6342c7a8"
    of_sellers = {"seller", "llm_error_rate", "llm_price_item"}
    assert set(whole.to_json()) == told - {"sellers", "general", "max_labels", "test_rows"} | of_sellers


def test_the_order_in_which_settings_are_named_does_not_matter() -> None:
    one = {"teacher": {"epochs": 1, "dropout": 0.1}, "distil": {"epochs": 2}}
    other = {"distil": {"epochs": 2}, "teacher": {"dropout": 0.1, "epochs": 1}, "student": {}}
    assert replace(REQUEST, overrides=one).run_id == replace(REQUEST, overrides=other).run_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget_micros": 0}, "the budget is $0.00; it must be above $0"),
        ({"n_initial": 0}, "n_initial is 0; it must be at least 1"),
        ({"pool_rows": 0}, "pool_rows is 0; it must be at least 1"),
        ({"n_dev": -3}, "n_dev is -3; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1, and at most 1,024"),
        ({"precision": "fp16"}, "--precision is 'fp16'; it must be auto, bf16 or fp32"),
        ({"student_training": "gratis"}, "student_training is 'gratis'; it must be charged or free"),
        ({"sellers": (CROWD, SellerSpec(), CROWD)}, "seller 'crowd' is named twice; name each once"),
        ({"dev": "test"}, "dev is 'test'; it must be given, bought, carved, folds or none"),
    ],
)
def test_an_impossible_request_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        replace(REQUEST, **change)
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"redundancy": 2}, "the redundancy is 2; give an odd number of answers per label"),
        ({"redundancy": 0}, "the redundancy is 0; give an odd number"),
        ({"error_rate": 1.5}, "the label error rate is 1.5; it must be from 0 to 1"),
        ({"error_rate": float("nan")}, "from 0 to 1"),
        ({"seconds_per_label": -1.0}, "give 0 or more"),
        ({"seconds_per_label": float("inf")}, "give 0 or more"),
    ],
)
def test_an_impossible_seller_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        ReplayOptions(**change)


@pytest.mark.parametrize("name", ["", " crowd"])
def test_a_seller_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a seller"):
        SellerSpec(name)


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=f"unknown role 'pupil'.*{', '.join(ROLES)}"):
        replace(REQUEST, overrides={"pupil": {"epochs": 1}})


@pytest.mark.parametrize("change", [{"digests": None}, {"dev": None}, {"precision": "auto"}])
def test_a_request_has_a_run_id_only_once_it_is_resolved(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="distill on task is not resolved"):
        _ = replace(REQUEST, **change).run_id
