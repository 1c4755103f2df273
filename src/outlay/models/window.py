"""Context windows: tokens that a model can read and write, from its config and without torch.

A model with a table of positions fails behind its last row, and one with rotary positions was not trained behind
``max_position_embeddings``: both are cut there. T5's relative positions and ALiBi have no end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from outlay.errors import UsageError
from outlay.models.reference import parse_ref, resolve_folder
from outlay.models.shape import config_number, family_of, read_config
from outlay.models.sizes import tiny_size
from outlay.spec import Family, TargetKind, TaskSpec

_RELATIVE = ("t5", "mt5", "umt5", "longt5", "bloom")
"""Relative positions (Raffel et al. 2020, section 2.1), ALiBi (Press et al. 2022)."""

_FIRST_ROW_IS_PAD = (
    *("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text", "xmod"),
    *("longformer", "ibert", "luke", "esm"),
)
"""Position 0 stands in the row behind that of the padding token (fairseq): of 514 rows 512 are left."""

_MPNET_PAD = 1
"""Row at which MPNet's positions begin, in the same way; its config does not name it (`MPNetEmbeddings.padding_idx`)."""

_DEFAULTS = {
    **dict.fromkeys(("bert", "distilbert", "deberta-v2", "roberta", "xlm-roberta", "camembert", "mpnet"), 512),
    **dict.fromkeys(("bart", "mbart", "plbart", "pegasus", "m2m_100", "gpt2"), 1024),
    **{"blenderbot": 128, "blenderbot-small": 512, "gpt_neo": 2048},
}
"""Rows of the table where a config leaves them out, as transformers takes them then."""


@dataclass(frozen=True, slots=True)
class Window:
    """Positions of a model; ``None`` = unlimited.

    ``source``: of what it reads, special tokens included; ``target``: of an answer of a model with a decoder of its own;
    ``is_shared``: text and answer stand behind one another in ``source`` positions, as a causal model reads them.
    """

    source: int | None = None
    target: int | None = None
    is_shared: bool = False

    def fit(self, form: TaskSpec, ref: str = "the model") -> TaskSpec:
        """Return the form with its limits lowered to what the model can do; ``ref``: what an error calls it.

        Raises:
            UsageError: the answer of a causal model leaves no position to the text.
        """
        room = self.source
        if room is not None and self.is_shared:
            # The last token of an answer is predicted, not read.
            room -= form.max_target_tokens - 1
            if room < 1:
                raise UsageError(
                    f"max_target_tokens is {form.max_target_tokens:,}, and model {ref!r} has {self.source:,} positions for "
                    "text and answer together; lower it, or take another model"
                )
        return replace(
            form,
            max_source_tokens=_least(form.max_source_tokens, room),
            max_target_tokens=_least(form.max_target_tokens, self.target),
        )

    def lines(self, form: TaskSpec, ref: str) -> list[str]:
        """Return a line for each limit of the task that is lowered for this model."""
        found, fitted = [], self.fit(form, ref)
        if fitted.max_source_tokens < form.max_source_tokens:
            why = f"reads at most {self.source:,} tokens"
            if self.is_shared:
                why = f"has {self.source:,} positions for text and answer together"
            found.append(
                f"max_source_tokens is {form.max_source_tokens:,}, and model {ref!r} {why}: texts are cut at "
                f"{fitted.max_source_tokens:,}"
            )
        if fitted.max_target_tokens < form.max_target_tokens:
            found.append(
                f"max_target_tokens is {form.max_target_tokens:,}, and model {ref!r} writes at most {self.target:,} tokens: "
                "answers are cut there"
            )
        return found


ENDLESS = Window()
"""Window of a model that reads and writes texts of any length."""


def check_handover(kind: TargetKind, teacher: TaskSpec, student: TaskSpec, ref: str) -> None:
    """Refuse targets whose positions the student ``ref`` does not have; ``teacher``, ``student``: the form as each can do it.

    Raises:
        UsageError: tags of tokens that it does not read, or tokens that it cannot write.
    """
    if kind == "tags" and teacher.max_source_tokens != student.max_source_tokens:
        least = min(teacher.max_source_tokens, student.max_source_tokens)
        raise UsageError(
            f"the teacher reads {teacher.max_source_tokens:,} tokens of a text and student {ref!r} "
            f"{student.max_source_tokens:,}, and tags are one for each; give max_source_tokens {least:,} or less"
        )
    if kind == "tokens" and student.max_target_tokens < teacher.max_target_tokens:
        raise UsageError(
            f"the teacher writes up to {teacher.max_target_tokens:,} tokens and student {ref!r} "
            f"{student.max_target_tokens:,}; give max_target_tokens {student.max_target_tokens:,} or less"
        )


def window_of(ref: str, *, base: str | None = None) -> Window:
    """Return the window of a model reference; a ``cut:`` model has its base's, a ``tiny:`` one its own.

    Raises:
        UnknownModel: the reference leads nowhere, or to a type that is not one of `outlay.models.shape.FAMILY_OF`.
    """
    parsed = parse_ref(ref)
    family = family_of(ref, base=base)
    if parsed.kind == "tiny":
        size = tiny_size(family, parsed.n_layers, parsed.hidden_size, 1)
        return Window(size.n_positions or None)
    return window_in(read_config(resolve_folder(ref, base=base)), family)


def window_in(config: Mapping[str, Any], family: Family) -> Window:
    """Return the window that a ``config.json`` says."""
    kind = str(config.get("model_type"))
    if kind == "led":
        source, target = (config_number(config, f"max_{stack}_position_embeddings") for stack in ("encoder", "decoder"))
        return Window(source, target)
    n = n_positions(config)
    return Window(n, n if family == "seq2seq" else None, is_shared=family == "causal")


def n_positions(config: Mapping[str, Any]) -> int | None:
    """Return the positions that the ``config.json`` of one stack, or of two alike, has; ``None``: no end."""
    kind = str(config.get("model_type"))
    if kind in _RELATIVE or (kind.startswith("deberta") and config.get("position_biased_input") is False):
        return None
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions", "n_ctx")
    n = config_number(config, *names) or _DEFAULTS.get(kind)
    if n is not None and kind in _FIRST_ROW_IS_PAD:
        pad = config.get("pad_token_id", 1)
        n -= (pad if isinstance(pad, int) else 1) + 1
    elif n is not None and kind == "mpnet":
        n -= _MPNET_PAD + 1
    return n


def _least(asked: int, limit: int | None) -> int:
    return asked if limit is None else min(asked, limit)
