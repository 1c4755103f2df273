"""Folder of targets, as `outlay teach` writes it and `outlay distill` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import ArtifactDamaged, MissingData, UsageError
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.standalone.inputs import TaskRow
from outlay.standalone.output_dir import SUMMARY, Document, OutputDir, json_lines, read_object
from outlay.storage.hashing import digest_of, digest_of_file

if TYPE_CHECKING:
    from outlay.train.targets.targets import SparseTargets

INDEX, ROWS, ANSWERS = "targets.json", "rows.jsonl", "answers.jsonl"
FORMAT = 2


def block_name(number: int) -> str:
    """Return the file name of a block."""
    return f"targets-{number:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class TargetsFolder:
    """Finished folder of targets.

    ``index``: as in its file, with the sha256 of each block's; ``digest``: of the index; ``form``: of the task that the teacher
    answered; ``settings``: of its answers.
    """

    folder: Path
    index: Document
    digest: str
    form: TaskSpec
    kind: TargetKind
    settings: TeachSettings

    @classmethod
    def open(cls, folder: Path) -> TargetsFolder:
        """Read the index of a finished folder.

        Raises:
            MissingData: no such folder, no targets in it, or not all of them.
        """
        path = folder / INDEX
        if not path.is_file():
            if any(folder.glob("targets-*.safetensors")):
                raise MissingData(
                    f"{folder} holds some targets but no {INDEX}; run its `outlay teach` again to finish them"
                )
            raise MissingData(f"{folder} holds no targets ({INDEX} is not there); write them with `outlay teach`")
        try:
            index = read_object(path)
            found = index["format"]
        except (OSError, ValueError, KeyError) as error:
            raise MissingData(f"{path} cannot be read ({type(error).__name__}); teach again") from error
        if found != FORMAT:
            raise MissingData(f"{path} has format {found}, this version of outlay reads {FORMAT}; teach again")
        form, settings = TaskSpec.from_json(index["form"]), TeachSettings(**index["settings"])
        return cls(folder, index, digest_of(path.read_bytes()), form, index["kind"], settings)

    def rows(self) -> list[TaskRow]:
        """Read the rows that the teacher answered, in order."""
        path = self.folder / ROWS
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError:
            raise MissingData(f"{path} is not there; teach again") from None
        rows = [TaskRow.from_json(json.loads(line), f"{path}:{i}") for i, line in enumerate(lines, start=1) if line]
        if len(rows) != self.index["n_rows"]:
            raise MissingData(f"{path} holds {len(rows)} rows, {INDEX} says {self.index['n_rows']}; teach again")
        return rows

    def load(self, n_rows: int) -> SparseTargets:
        """Return the targets of the first ``n_rows`` rows, mapped into memory.

        Each block is read once here, for its sha256, and again when its rows are used.

        Raises:
            ArtifactDamaged: a block that is not there, does not match its sha256 or has another format.
        """
        from outlay.train.targets.targets import SparseTargets

        blocks: list[SparseTargets] = []
        for block in self.blocks():
            blocks.append(block)
            if sum(map(len, blocks)) >= n_rows:
                break
        whole = SparseTargets.concatenate(blocks)
        return whole if len(whole) == n_rows else whole.select(range(n_rows))

    def blocks(self) -> Iterator[SparseTargets]:
        """Yield the blocks in order, each mapped into memory after its sha256 has been compared.

        Raises:
            ArtifactDamaged: a block that is not there, does not match its sha256 or has another format.
        """
        from outlay.train.targets.targets import SparseTargets

        for name in self.index["blocks"]:
            path = self.folder / name
            if self.state(name) != "sound":
                raise ArtifactDamaged(
                    f"{path} does not match its sha256 in {INDEX}; remove {path} and {INDEX}, {self._again}"
                )
            yield SparseTargets.open(path)

    def about(self) -> Document:
        """Return a description of the folder; terms and statistics are those of its sound blocks."""
        from outlay.train.targets.targets import SparseTargets

        states = {name: self.state(name) for name in self.index["blocks"]}
        blocks = [SparseTargets.open(self.folder / name) for name, state in states.items() if state == "sound"]
        summary = self.folder / SUMMARY
        seconds = read_object(summary)["seconds"] if summary.is_file() else 0.0
        return {
            "targets": str(self.folder),
            "kind": self.kind,
            "n_rows": self.index["n_rows"],
            "temperatures": list(blocks[0].temperatures) if blocks else [],
            "vocab_size": blocks[0].vocab_size if blocks else None,
            "teacher": self.index["teacher"],
            "student": self.index["student"],
            "imported": self.index.get("imported"),
            "form": self.form.to_json(),
            "settings": self.settings.to_json(),
            "kept": kept_of(blocks),
            "rows_per_second": round(self.index["n_rows"] / seconds, 1) if seconds > 0 else None,
            "n_bytes": sum(path.stat().st_size for name in states if (path := self.folder / name).is_file()),
            "blocks": {name: {"sha256": self.index["blocks"][name], "state": state} for name, state in states.items()},
        }

    def state(self, block: str) -> str:
        """Return ``sound``, ``damaged`` or ``missing`` for a block's file, by its sha256."""
        path = self.folder / block
        if not path.is_file():
            return "missing"
        return "sound" if digest_of_file(path) == self.index["blocks"][block] else "damaged"

    @property
    def _again(self) -> str:
        return "import again" if "imported" in self.index else "teach again"

    def check_student(self, student: str, base: str | None, settings: TrainSettings) -> None:
        """Refuse a student or settings that do not fit these targets, as far as this can be known.

        Raises:
            UsageError: other tokens than the teacher's, a temperature that is not offered, or the published objective on targets
                without padding.
        """
        offered = () if self.kind == "text" else next(self.blocks()).temperatures
        if offered and settings.temperature not in offered:
            known = ", ".join(f"{t:g}" for t in offered)
            raise UsageError(
                f"--temperature is {settings.temperature:g}, and {self.folder} has the teacher's log-sum-exp at {known} only; "
                f"add --temperature {offered[0]:g}"
            )
        if settings.objective == "published" and not self.settings.keep_padding:
            raise UsageError(
                f"--objective published reads padded positions, and {self.folder} keeps none; "
                "teach again with --keep-padding --max-logits 0"
            )
        if self.kind not in ("tokens", "tags") or [student, base] == self.index["student"]:
            return
        from outlay.models.loading import same_tokenizer

        # Targets that were imported have the tokens of the student they were imported for.
        is_imported = "imported" in self.index
        teacher, own = self.index["student"] if is_imported else (self.index["teacher"], None)
        if not is_imported and not Path(teacher).is_dir():
            raise UsageError(
                f"the targets are {self.kind} of the teacher's tokenizer, and {teacher} is no longer there to compare "
                f"with {student}; teach again with --student {student}"
            )
        if not same_tokenizer(teacher, own or teacher, student, base or student):
            raise UsageError(
                f"the targets are {self.kind} of another tokenizer than that of {student}; "
                f"{self._again} with --student {student}"
            )


def index_of(
    form: TaskSpec, kind: TargetKind, settings: TeachSettings, blocks: Mapping[str, str], about: Mapping[str, Any]
) -> Document:
    """Return the index of a finished folder; ``blocks``: sha256 by file name, in order; ``about``: teacher, student, rows."""
    return {
        "format": FORMAT,
        "kind": kind,
        "form": form.to_json(),
        "settings": settings.to_json(),
        **about,
        "blocks": dict(blocks),
    }


def answer_lines(rows: Sequence[TaskRow], answers: Sequence[str]) -> list[Document]:
    """Return a JSON line for each row: source, prediction, and gold where it is known."""
    return [
        {"source": row.text, "prediction": said, **({} if row.gold is None else {"gold": row.gold})}
        for row, said in zip(rows, answers, strict=True)
    ]


def write_index(output: OutputDir, rows: Sequence[TaskRow], index: Document) -> Document:
    """Write rows, answers and index of a folder whose blocks are written, and return the facts of its report."""
    from outlay.train.targets.targets import SparseTargets

    def blocks() -> Iterator[SparseTargets]:
        return (SparseTargets.open(output.out / name) for name in index["blocks"])

    output.write(output.out / ROWS, json_lines([row.to_json() for row in rows]))
    answers = [answer for block in blocks() for answer in block.answers]
    output.write(output.out / ANSWERS, json_lines(answer_lines(rows, answers)))
    output.write_json(output.out / INDEX, index)
    return {
        "targets": str(output.out),
        "kind": index["kind"],
        "n_rows": len(rows),
        "n_blocks": len(index["blocks"]),
        "kept": kept_of(blocks()),
    }


def kept_of(blocks: Iterable[SparseTargets]) -> Document:
    """Return statistics of the logits and probability mass that all blocks keep."""
    from outlay.train.targets.statistics import TargetStatistics

    total = sum((block.statistics() for block in blocks), TargetStatistics(0, 0, 0))
    return {
        "n_positions": total.n_positions,
        "bytes_per_position": round(total.bytes_per_position, 2),
        "logits_mean": round(total.kept_mean, 2),
        "logits_max": total.kept_max,
        "mass_mean": round(total.mass_kept_mean, 6),
        "mass_min": round(total.mass_kept_min, 6),
        "n_capped": total.n_capped,
    }
