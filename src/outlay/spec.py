"""A task as a model meets it, and the kind of targets a teacher gives a student; standard library only.

Every answer is a text: a class label, a line of entities, or free text. Families differ in how they say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["classification", "entities", "generation"]
Family = Literal["encoder", "seq2seq", "causal"]
TargetKind = Literal["classes", "tags", "tokens", "text"]
"""Kinds of targets a teacher gives: a distribution over the classes, over the tags of each source token, over the
vocabulary at each token of its answer, or its answer alone.
"""
Reading = Literal["whole", "joined", "towers"]
"""How a model reads a row: ``whole`` by its own head, or pooled, its ``joined`` texts or each in ``towers``."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as a model meets it: kind, labels, and the longest question and answer.

    ``labels``: the classes, the entity types, or nothing where the answer is free; ``prefix``: put before the text for models
    that write their answer (Kang et al. 2023 write ``<task>: ``), not read by encoders; limits in tokens, special ones included.
    """

    kind: Kind
    labels: tuple[str, ...]
    max_source_tokens: int
    max_target_tokens: int
    prefix: str = ""

    @property
    def n_outputs(self) -> int:
        """Outputs of an encoder's head: the classes, or begin and inside of each entity type and neither.

        A model that writes has its vocabulary instead.
        """
        return 2 * len(self.labels) + 1 if self.kind == "entities" else len(self.labels)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for keys and for the file beside a model."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TaskSpec:
        """Read a task specification from `to_json`'s values."""
        return cls(**{**document, "labels": tuple(document["labels"])})


def cut_lines(
    form: TaskSpec, n_rows: int, *, n_truncated: int = 0, n_answers_cut: int = 0, n_unaligned: int = 0
) -> list[str]:
    """Say what of ``n_rows`` was not taken in whole, a line each: texts and answers beyond the limits, entities not found."""
    lines = []
    for n, what, limit in (
        (n_truncated, "rows", form.max_source_tokens),
        (n_answers_cut, "answers", form.max_target_tokens),
    ):
        verb = "was" if n == 1 else "were"
        if n:
            lines.append(f"{n:,} of {n_rows:,} {what} {verb} longer than {limit} tokens and {verb} cut")
    if n_unaligned:
        what = "entity" if n_unaligned == 1 else "entities"
        rest = "its text and was" if n_unaligned == 1 else "their text and were"
        lines.append(f"{n_unaligned:,} {what} of {n_rows:,} rows could not be found in {rest} left out")
    return lines


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """The kind of targets that a teacher writes for a student, and for ``tokens`` the rows of the vocabulary that both have."""

    target: TargetKind
    vocab_size: int | None = None


def target_spec(
    kind: Kind, teacher: tuple[Family, int], student: tuple[Family, int], has_same_tokens: Callable[[], bool]
) -> TargetSpec:
    """Return what this teacher hands to this student, each given by its family and its rows of the vocabulary.

    A classification with an encoder: a distribution over the label set. Equal tokenizers, which are compared only where that
    decides: the distribution of each token, of encoders of its tag. Else classes again, or a text.
    """
    are_encoders = [family == "encoder" for family, _ in (teacher, student)]
    if kind == "classification" and any(are_encoders):
        return TargetSpec("classes")
    if len(set(are_encoders)) == 1 and has_same_tokens():
        return TargetSpec("tags") if all(are_encoders) else TargetSpec("tokens", min(teacher[1], student[1]))
    return TargetSpec("classes" if kind == "classification" else "text")


def without_fraction(text: str) -> str:
    """Return a whole number without its fraction of zeros, 1 for 1.0; any other text as it is."""
    return re.sub(r"\A(-?[0-9]+)\.0+\Z", r"\1", text)


def named_class(answer: str, labels: Sequence[str]) -> str:
    """Return the class an answer names: itself, or the label it is but for a fraction of zeros, as 1.0 names the class 1.

    Programs that hold classes as numbers write them with a fraction as soon as one row has none.
    """
    if answer in labels:
        return answer
    whole = without_fraction(answer)
    same = [label for label in labels if without_fraction(label) == whole]
    return same[0] if len(same) == 1 else answer


def can_answer(family: Family, kind: Kind) -> bool:
    """Return whether a family can do such a task at all: an encoder does not write text."""
    return kind != "generation" or family != "encoder"
