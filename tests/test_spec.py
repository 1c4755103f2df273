"""The form of a task, and what a teacher hands to a student."""

from __future__ import annotations

import pytest

from outlay.spec import Family, Kind, TargetKind, TargetSpec, TaskSpec, target_spec


def never() -> bool:
    raise AssertionError("tokenizers need not be compared")


@pytest.mark.parametrize(
    ("kind", "teacher", "student", "same", "target"),
    [
        ("classification", "seq2seq", "seq2seq", True, "tokens"),
        ("classification", "causal", "seq2seq", True, "tokens"),
        ("classification", "seq2seq", "seq2seq", False, "classes"),
        ("classification", "seq2seq", "causal", False, "classes"),
        ("entities", "encoder", "encoder", True, "tags"),
        ("entities", "encoder", "encoder", False, "text"),
        ("entities", "seq2seq", "encoder", True, "text"),
        ("generation", "causal", "causal", True, "tokens"),
        ("generation", "seq2seq", "seq2seq", True, "tokens"),
        ("generation", "causal", "seq2seq", False, "text"),
        ("generation", "causal", "causal", False, "text"),
    ],
)
def test_equal_tokenizers_decide_what_is_handed_over(
    kind: Kind, teacher: Family, student: Family, same: bool, target: TargetKind
) -> None:
    found = target_spec(kind, (teacher, 120), (student, 97), lambda: same)
    assert found == TargetSpec(target, 97 if target == "tokens" else None)


@pytest.mark.parametrize("families", [("encoder", "seq2seq"), ("causal", "encoder"), ("encoder", "encoder")])
def test_tokenizers_are_not_read_where_a_class_is_handed_over(families: tuple[Family, Family]) -> None:
    teacher, student = families
    assert target_spec("classification", (teacher, 120), (student, 97), never) == TargetSpec("classes")


def test_a_head_has_an_output_for_each_class_or_tag() -> None:
    assert TaskSpec("classification", ("yes", "no"), 8, 1).n_outputs == 2
    assert TaskSpec("entities", ("Action", "Reagent"), 8, 1).n_outputs == 5
