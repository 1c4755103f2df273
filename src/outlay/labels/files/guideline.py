"""What annotators are told: instruction, labels, how a file is filled in. What they wrote in a label cell is read here too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outlay.labels.files.cells import fuse, number_of, writable
from outlay.spec import Kind
from outlay.text.entities import align, parse_entities, render_entities, unlabelled
from outlay.text.legible import label_problem, listed, quoted

NOTHING = "none"
"""What annotators write for a text without entities: an empty cell is no answer."""

_HOW_TO = """
The items stand in a .csv file, for a spreadsheet or an editor, and in a .jsonl file, for programs; use one.

  label     {label}
  comment   anything you want to say; no program reads it
  seconds   add this column if you take the time that an item took

Leave `id` as it is, and leave the label empty where you have no answer. Rows may stand in any order, and you
may stop and go on at any time. An apostrophe before one of = + - @ keeps spreadsheets from reading a formula;
it is not part of the text.

Save in the same format (CSV, UTF-8). Files under another name, or from elsewhere, go into the folder answers:
CSV, TSV or JSON lines with `id` and `label`, one file per annotator, named after them. Then the person who gave
you this runs the same command again. What could not be read is listed in problems.csv.
"""


@dataclass(frozen=True, slots=True)
class ReadLabel:
    """Reading of the text of a label cell.

    ``label`` is ``None`` where it is no answer, and ``problem`` says why; ``note`` says how it was read where that is not as it
    was written.
    """

    label: str | None
    note: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Guideline:
    """Guideline for annotators: the task's name and kind, its label set, the instruction and the descriptions of labels."""

    task: str
    kind: Kind = "classification"
    labels: tuple[str, ...] = ()
    instruction: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest (sha256, hex) of all that annotators are told about the task; its name is not part of it."""
        told = [self.kind, list(self.labels), self.instruction, sorted(self.descriptions.items())]
        return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode("ascii")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the guideline as JSON values."""
        return {
            "task": self.task,
            "kind": self.kind,
            "labels": list(self.labels),
            "instruction": self.instruction,
            "descriptions": dict(self.descriptions),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Guideline:
        """Return the guideline that `to_json` wrote."""
        return cls(**{**values, "labels": tuple(values["labels"])})

    def read(self, cell: str, source: str) -> ReadLabel:
        """Read what an annotator wrote about a text; ``cell`` is more than blanks."""
        if self.kind == "entities":
            return self._read_entities(cell, source)
        return self._read_class(cell) if self.kind == "classification" else _read_text(cell)

    def _read_class(self, cell: str) -> ReadLabel:
        """Read one label of the set: as written, without outer blanks, in another case, or as a number written otherwise."""
        if cell in self.labels:
            return ReadLabel(cell)
        bare = cell.strip()
        by_case = [label for label in self.labels if label.casefold() in (bare.casefold(), fuse(bare).casefold())]
        if bare in by_case:
            by_case = [bare]
        number = number_of(bare)
        by_number = [label for label in self.labels if number is not None and number_of(label) == number]
        for found in (by_case, by_number):
            if len(found) == 1:
                return ReadLabel(found[0], note=f"{quoted(cell)} was taken as {quoted(found[0])}")
        return ReadLabel(None, problem=f"the row {label_problem(cell, self.labels)}")

    def _read_entities(self, cell: str, source: str) -> ReadLabel:
        line = fuse(cell.strip())
        if line.casefold() == NOTHING:
            return ReadLabel("")
        entities = parse_entities(line, self.labels)
        if rest := unlabelled(line, self.labels):
            known = listed(f"[{label}]" for label in self.labels)
            return ReadLabel(None, problem=f"no type of the set stands behind {quoted(rest)}; the types are {known}")
        for entity in entities:
            if not entity.text or align(source, [entity])[1]:
                what = f"{quoted(entity.text)} [{entity.label}]" if entity.text else f"[{entity.label}] without words"
                return ReadLabel(None, problem=f"{what} is not in the text")
        if align(source, entities)[1]:
            return ReadLabel(None, problem="an entity is named more often than the text has it")
        label = render_entities(entities)
        is_changed = " ".join(line.split()) != label
        return ReadLabel(label, note=f"{quoted(cell)} was taken as {quoted(label)}" if is_changed else "")

    def how_to(self) -> str:
        """Return what goes into the label cell."""
        if self.kind == "classification":
            return "one of the labels above, as it is written there"
        if self.kind == "entities":
            return (
                "the entities of the text in order, each followed by its type in brackets, such as\n"
                f"            Ada Lovelace [{self.labels[0]}] London [{self.labels[-1]}]\n"
                f"            with the words as the text has them; for a text without any, write {NOTHING}"
            )
        return "your answer, in your own words"

    def readme(self, n_items: int, names: tuple[str, ...]) -> str:
        """Return the text for annotators that lies beside their files."""
        what = {"classification": "Labels", "entities": "Types", "generation": ""}[self.kind]
        told = [self.instruction.strip(), ""] if self.instruction.strip() else []
        listing = [f"  {label}{f': {why}' if (why := self.descriptions.get(label)) else ''}" for label in self.labels]
        shown = [f"{what}:", *listing, ""] if listing else []
        who = (
            f"Each annotator fills in a file of their own ({', '.join(names)}) and does not look into the others'."
            if len(names) > 1
            else f"Fill in {names[0]}."
        )
        head = [f"{self.task}: {n_items:,} items to label", "", *told, *shown, who]
        return "\n".join(head) + _HOW_TO.format(label=self.how_to())


def _read_text(cell: str) -> ReadLabel:
    """Read a free answer: without outer blanks, with line ends as Python has them."""
    text = writable(fuse(cell.strip())).replace("\r\n", "\n").replace("\r", "\n")
    return ReadLabel(text)
