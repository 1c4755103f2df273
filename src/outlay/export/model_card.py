"""The card of a handed-over model, in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.metrics import Reading
from outlay.metrics.per_class import LabelScore
from outlay.spec import Kind

_PIPELINES: dict[Kind, str] = {
    "classification": "text-classification",
    "entities": "token-classification",
    "generation": "text-generation",
}
_METRIC_TYPES = {"entity_f1": "f1", "qa_f1": "f1"}
"""Names that the hub has for metrics of other names here."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Facts of a card; sentences and amounts are ready to print, scores are 0-100.

    ``facts``: heading to text, one row each of the first table; ``scores``: by name, the main one first; ``licences``: of what
    went in, a line each; ``reproduce``: lines of a shell; ``library``: that loads the model.
    """

    task: str
    description: str
    kind: Kind
    labels: tuple[str, ...]
    library: str
    base_model: str | None
    facts: Mapping[str, str]
    scores: Mapping[str, Reading]
    n_test: int
    label_scores: Sequence[LabelScore]
    notes: Sequence[str]
    licences: Sequence[str]
    reproduce: Sequence[str]
    receipt: str
    loading: str


def card_text(facts: CardFacts) -> str:
    """Return the card: the hub's metadata in front, then what it is, how to load it, how good it is, what it cost."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(**_metadata(facts))
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {facts.task}: {_summary(facts)}\n",
        *([facts.description + "\n"] if facts.description else []),
        _table(("", ""), list(facts.facts.items())),
        use_section(facts.loading),
        "## Scores\n",
        f"On {facts.n_test:,} test rows, with the 95 % interval of this model over such rows.\n",
        _table(("score", "0-100", "95 %"), [_score_row(*each) for each in facts.scores.items()]),
    ]
    if facts.label_scores:
        parts.append(
            _table(
                (
                    "label",
                    "precision",
                    "recall",
                    "F1",
                    "test rows" if facts.kind == "classification" else "test entities",
                ),
                [
                    (_cell(each.label), f"{each.precision:.1f}", f"{each.recall:.1f}", f"{each.f1:.1f}", f"{each.n:,}")
                    for each in facts.label_scores
                ],
            )
        )
    parts += ["".join(f"- {note}\n" for note in facts.notes)] if facts.notes else []
    parts += ["## What went in\n", "".join(f"- {line}\n" for line in facts.licences)]
    parts += ["## What it cost\n", f"```\n{facts.receipt}```\n"]
    parts += ["## How to make it again\n", "```\n" + "\n".join(facts.reproduce) + "\n```\n"]
    return "\n".join(parts)


def use_section(loading: str, fetch: str | None = None) -> str:
    """Return the section of a card on using the model; ``fetch``: the command that gets it from a hub, where it lies on one."""
    first = "" if fetch is None else f"`{fetch}`, then "
    where = "" if fetch is not None else ", where `MODEL` is this folder"
    how = f"With `outlay`: {first}`outlay predict FOLDER --file new.csv`, or in Python `outlay.load_model(FOLDER)`."
    return "\n".join(["## Use\n", f"{how} Without it{where}:\n", f"```python\n{loading}```\n"])


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """Return the values of the metadata; a base model that is no name of the hub is left to the text."""
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type=_PIPELINES[facts.kind],
            dataset_type=facts.task,
            dataset_name=facts.task,
            dataset_split="test",
            metric_type=_METRIC_TYPES.get(name.split("/")[0], name.split("/")[0]),
            metric_name=name,
            metric_value=round(reading.value, 4),
        )
        for name, reading in facts.scores.items()
    ]
    return {
        "model_name": facts.task,
        "library_name": facts.library,
        "pipeline_tag": _PIPELINES[facts.kind],
        "tags": ["outlay"],
        "base_model": facts.base_model,
        "eval_results": results,
    }


def _summary(facts: CardFacts) -> str:
    return f"a model of {len(facts.labels):,} labels" if facts.kind == "classification" else f"a model for {facts.kind}"


def _score_row(name: str, reading: Reading) -> tuple[str, str, str]:
    return f"`{name}`", f"{reading.value:.1f}", f"{reading.low:.1f} to {reading.high:.1f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
