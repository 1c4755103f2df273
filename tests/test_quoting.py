"""Quotes of models that write, against a count row by row: what goes through a model at most, for every kind of targets."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.models.shape import ModelShape
from outlay.plan.context import PlanningContext, TokenCounts
from outlay.plan.quotes import Quoter
from outlay.plan.steps import OF_TRAIN, Distil, Score, Step, Teach, Train
from outlay.plan.strategies import strategy
from outlay.spec import Family, TargetKind, TargetSpec, TaskSpec
from tests.knowledge import (
    COUNTS,
    ENCODING,
    EPOCHS,
    LABELS,
    N_DEV,
    N_POOL,
    N_TEST,
    ROWS,
    SHAPES,
    STUDENT,
    TEACHER,
    carved,
    known,
    lengths,
)

LIMIT = 11
"""Tokens of an answer."""

CASES: list[tuple[Family, Family, TargetKind]] = [
    ("encoder", "encoder", "classes"),
    ("encoder", "seq2seq", "classes"),
    ("seq2seq", "encoder", "classes"),
    ("causal", "seq2seq", "classes"),
    ("seq2seq", "causal", "classes"),
    ("seq2seq", "seq2seq", "tokens"),
    ("causal", "seq2seq", "text"),
    ("encoder", "encoder", "tags"),
    ("encoder", "seq2seq", "text"),
    ("seq2seq", "encoder", "text"),
]
N, N_BLOCKS = 50, 3
STUDENT_ROWS = {
    "train": lengths(len(ROWS["train"]), 5),
    "pool": lengths(N_POOL, 6),
    "dev": lengths(N_DEV, 7),
    "test": lengths(N_TEST, 8),
}


def knows(teacher: Family, student: Family, target: TargetKind, **changes: object) -> PlanningContext:
    """The student reads other tokens than the teacher; each family has its own formula."""
    shapes: dict[str, ModelShape] = {
        ref: replace(SHAPES[ref], family=family) for ref, family in ((TEACHER.ref, teacher), (STUDENT.ref, student))
    }
    counts = {name: list(accumulate(rows, initial=0)) for name, rows in STUDENT_ROWS.items()}
    longest = {TEACHER.ref: 0 if teacher == "encoder" else LIMIT, STUDENT.ref: 0 if student == "encoder" else LIMIT}
    return known(
        10**10,
        n_initial=N,
        encoding=replace(ENCODING, form=TaskSpec("classification", LABELS, 64, LIMIT)),
        shapes=shapes,
        tokens={TEACHER.ref: COUNTS, STUDENT.ref: TokenCounts(**counts)},
        longest_answer=longest,
        target_specs={(TEACHER.ref, STUDENT.ref): TargetSpec(target, 97 if target == "tokens" else None)},
        **changes,
    )


def steps(of: PlanningContext) -> dict[str, list[Step]]:
    recipe = strategy("distill").ask(of, [])
    found: dict[str, list[Step]] = {}
    for step in recipe.steps():  # type: ignore[union-attr]
        found.setdefault(step.kind, []).append(step)
    return found


@pytest.mark.parametrize("dev", ["given", "carved", "folds", "none"])
@pytest.mark.parametrize(("teacher", "student", "target"), CASES)
@pytest.mark.parametrize(
    ("speaks", "gold_weight"),
    [({}, 0.0), ({"beams": 4}, 0.5), ({"sample": True}, 0.0), ({"keep_padding": True}, 0.0)],
    ids=["greedy", "beams", "sample", "padding"],
)
def test_what_goes_through_a_model_row_by_row(
    teacher: Family, student: Family, target: TargetKind, dev: str, speaks: dict[str, int], gold_weight: float
) -> None:
    asked = {"teach": speaks, "distil": {"gold_weight": gold_weight}}
    beams = speaks.get("beams", 1)
    of = knows(teacher, student, target, dev=dev, overrides=asked)
    found, quoter = steps(of), Quoter(of)
    spells, writes = (0 if teacher == "encoder" else LIMIT), (0 if student == "encoder" else LIMIT)
    choices = len(LABELS) if target == "classes" else 1
    first = carved(N) if dev in OF_TRAIN else 0

    def chosen(rows: list[int], answer: int, copies: int = 1) -> int:
        """Each label is read behind the source, where labels are words."""
        return sum(row if not answer else copies * row + choices * answer for row in rows)

    def dev_rows(rows: dict[str, list[int]]) -> list[int]:
        return [] if dev == "none" else rows["train"][:first] if dev in OF_TRAIN else rows["dev"]

    (train,) = found["train"]
    assert quoter.work(train).n_tokens_trained == EPOCHS["teacher"] * sum(r + spells for r in ROWS["train"][first:N])
    assert quoter.work(train).n_tokens_inferred == EPOCHS["teacher"] * sum(r + spells for r in dev_rows(ROWS))

    spoken = sum(quoter.work(block).n_tokens_inferred for block in found["teach"])
    again = 1 if speaks else 0  # a step of its own leaves no logits behind, or padding has them too
    passes = {"tokens": beams + again, "text": beams, "tags": 0, "classes": 0}[target]
    alone = chosen(ROWS["pool"], spells) if target == "classes" else sum(r + passes * spells for r in ROWS["pool"])
    assert spoken == alone

    (distil,) = found["distil"]
    assert isinstance(distil, Distil)
    once = chosen(STUDENT_ROWS["pool"], writes, choices if student == "causal" else 1)
    if gold_weight and target == "tokens":
        once += sum(r + writes for r in STUDENT_ROWS["train"][first:N])
    assert quoter.work(distil).n_tokens_trained == EPOCHS["distil"] * once
    assert quoter.work(distil).n_tokens_inferred == EPOCHS["distil"] * chosen(dev_rows(STUDENT_ROWS), writes)
    (score,) = found["score"]
    assert quoter.work(score).n_tokens_inferred == chosen(STUDENT_ROWS["test"], writes)


def test_a_pair_of_stacks_takes_half_of_what_one_stack_takes_per_token() -> None:
    both, one = (Quoter(knows(family, "encoder", "classes")) for family in ("seq2seq", "causal"))
    step = steps(knows("seq2seq", "encoder", "classes"))["train"][0]
    assert one.work(step) == both.work(step)
    assert [2 * n for n in both.flops(both.work(step))] == list(one.flops(one.work(step)))


@given(
    epochs=st.integers(1, 5), batch_size=st.integers(1, 40), eval_steps=st.integers(1, 60), stopped=st.integers(0, 400)
)
def test_evaluations_are_never_more_than_quoted(epochs: int, batch_size: int, eval_steps: int, stopped: int) -> None:
    """The loop evaluates every ``eval_steps`` steps and at its end, wherever the money ends it."""
    settings = {"epochs": epochs, "batch_size": batch_size, "eval_steps": eval_steps}
    of = knows("encoder", "encoder", "classes", overrides={"teacher": settings})
    (train,) = steps(of)["train"]
    assert isinstance(train, Train)
    n_steps = epochs * -(-N // batch_size)
    quoted = Quoter(of).work(train).n_tokens_inferred // sum(ROWS["dev"])
    taken = min(stopped, n_steps)
    assert (
        len({step for step in range(1, taken + 1) if step % eval_steps == 0} | ({taken} if taken else set())) <= quoted
    )
    whole = {step for step in range(1, n_steps + 1) if step % eval_steps == 0} | {n_steps}
    assert len(whole) == quoted


def test_blocks_and_scores_are_steps_of_their_own() -> None:
    found = steps(knows("seq2seq", "seq2seq", "tokens"))
    assert [len(found[kind]) for kind in ("buy", "train", "teach", "distil", "score")] == [1, 1, N_BLOCKS, 1, 1]
    assert isinstance(found["score"][0], Score)
    for block in found["teach"]:
        assert isinstance(block, Teach)
        assert (block.target, block.vocab_size) == ("tokens", 97)
