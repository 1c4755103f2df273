"""Conversion of imported answers to a student's targets: kind, sparsity rule, and each row's log-probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from outlay.errors import DataError, LabelError, UsageError
from outlay.settings import BLOCK_ROWS, TeachSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.standalone.export_targets import check_suffix
from outlay.standalone.inputs import DataOptions, DataReader
from outlay.standalone.logprob_formats import UNKNOWN_LOGPROB, Place, Record, Token
from outlay.standalone.output_dir import Document
from outlay.standalone.runtime import refuse_family
from outlay.storage.hashing import digest_of_file
from outlay.tasks.example import shorten
from outlay.text.legible import label_problem

if TYPE_CHECKING:
    from outlay.train.targets.logprobs import PositionLogprobs, Vocabulary
    from outlay.train.targets.logprobs import TargetRow as HeardRow
    from outlay.train.targets.sparse_logits import SparsityRule

MATCHES = ("ids", "text")

MISSING_LABELS = 0.01
"""Largest probability that labels a server did not list may have together."""


@dataclass(frozen=True, slots=True)
class Importing:
    """Options of an import: file, rows, student, kind of targets.

    ``asked``: the question, and the columns of a row's source and gold answer; ``rows_file``: the rows that were asked, where the
    answers do not repeat them, in the same order or with the same ``custom_id``; ``target``: kind of the targets, ``None`` = what
    the student reads; ``match``: ``ids`` where the numbers in the file are the student's, else ``text``; ``None`` = by what the
    file has; ``closing``: the text of the teacher's closing token, where it is not the student's.
    """

    file: Path
    out: Path
    asked: DataOptions = field(default_factory=DataOptions)
    rows_file: Path | None = None
    student: str | None = None
    base: str | None = None
    target: str | None = None
    match: str | None = None
    closing: str | None = None
    max_logits: int = TeachSettings().max_logits
    tail_mass: float = TeachSettings().tail_mass
    overwrite: bool = False
    block_rows: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        check_suffix(self.file, "FILE")
        for option, value, known in (("--target", self.target, get_args(TargetKind)), ("--match", self.match, MATCHES)):
            if value is not None and value not in known:
                raise UsageError(f"{option} {value!r} is unknown; choose one of {', '.join(known)}")
        TeachSettings(max_logits=self.max_logits, tail_mass=self.tail_mass)


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Import with all options resolved; ``own``: header of an export of `outlay`, where the file is read as one."""

    asked: Importing
    form: TaskSpec
    kind: TargetKind
    terms: SparsityRule | None
    vocabulary: Vocabulary | None
    own: Document | None

    @classmethod
    def of(cls, asked: Importing, inputs: DataReader, first: Record) -> ImportRequest:
        """Resolve the options by the first row of the file.

        Raises:
            UsageError: no student, or one that cannot read such targets.
        """
        header = None if first.about is None else dict(first.about)
        form = inputs.form(None if header is None else TaskSpec.from_json(header["form"]))
        own = header if asked.match != "text" else None
        kind = _own_kind(asked, own) if own is not None else _foreign_kind(asked, form, first)
        vocabulary = None
        if kind == "tokens":
            from outlay.train.targets.logprobs import vocabulary_of

            student, base = _student(asked, own)
            vocabulary = vocabulary_of(student, base, asked.closing)
        return cls(asked, form, kind, _terms(asked, form, kind, vocabulary, own), vocabulary, own)

    @property
    def is_own(self) -> bool:
        """Return whether the file is read as an export of `outlay`, with positions copied unchanged."""
        return self.own is not None

    @property
    def settings(self) -> TeachSettings:
        """Return the teaching settings: those in the header of our own export, else the limits on logits asked for."""
        if self.own is not None:
            return TeachSettings(**self.own["settings"])
        return TeachSettings(max_logits=self.asked.max_logits, tail_mass=self.asked.tail_mass)

    @property
    def about(self) -> Document:
        """Return the origin of the targets, for the index: teacher, student, imported file."""
        student = [self.asked.student, self.asked.base]
        imported = {"file": str(self.asked.file), "sha256": digest_of_file(self.asked.file)}
        if self.own is not None:
            known = {name: self.own.get(name) for name in ("teacher", "vocab_size", "model_sha256")}
            return {**known, "student": self.own["student"] if student[0] is None else student, "imported": imported}
        vocab_size = self.terms.vocab_size if self.kind == "tokens" and self.terms is not None else None
        return {"teacher": str(self.asked.file), "student": student, "vocab_size": vocab_size, "imported": imported}

    def request(self, rows: str | None) -> Document:
        """Return the request that decides the result; ``rows``: digest of the file of rows."""
        asked = self.asked
        return {
            "command": "targets import",
            "file_sha256": digest_of_file(asked.file),
            "rows": rows,
            "form": self.form.to_json(),
            "columns": [asked.asked.source_column, asked.asked.target_column],
            "kind": self.kind,
            "student": [asked.student, asked.base],
            "match": asked.match,
            "closing": asked.closing,
            "settings": self.settings.to_json(),
        }

    def heard(self, part: Sequence[Record], counts: Counter[str]) -> list[HeardRow]:
        """Return the log-probabilities of rows in the units of the targets; adds to ``counts``."""
        from outlay.train.targets.logprobs import TargetRow as Heard_

        if self.kind == "text":
            return [Heard_((), self._answer(record), 0, record.origin) for record in part]
        if self.own is not None:
            heard = [self._own(record) for record in part]
            if self.vocabulary is not None and self.asked.student not in (None, self.own["student"][0]):
                units = [[each.unit for each in row.positions[: row.n_real]] for row in heard]
                self._check_words(part, self.vocabulary.words(units))
            return heard
        if self.kind == "classes":
            return [self._classes(record, counts) for record in part]
        return self._tokens(part, counts)

    def _answer(self, record: Record) -> str:
        """Return the answer of a row in words.

        Raises:
            DataError: the row has no answer in words.
            LabelError: the answer is outside the label set.
        """
        if record.answer is None:
            raise DataError(f"{record.origin} has no answer in words; add one or remove the row")
        answer = record.answer if self.own is not None else record.answer.strip()
        if self.form.kind == "classification" and answer not in self.form.labels:
            raise LabelError(f"{record.origin} {label_problem(answer, self.form.labels)}; correct or remove the row")
        return answer

    def _own(self, record: Record) -> HeardRow:
        from outlay.train.targets.logprobs import PositionLogprobs
        from outlay.train.targets.logprobs import TargetRow as Heard_

        assert self.terms is not None
        names = ["1", *(f"{t:g}" for t in self.terms.temperatures if t != 1.0)]
        if record.answer is None:
            raise DataError(f"{record.origin} has no answer in words; add one or remove the row")
        places = _present(record)
        positions = []
        for place in (*places, *record.padding):
            numbers = [token.number for token in (place.said, *place.likeliest)]
            sums = place.logsumexp or {}
            if None in numbers or len(numbers) == 1 or any(sums.get(name) is None for name in names):
                raise DataError(
                    f"{record.origin} lacks token_id, top_logprobs or logsumexp of an export of `outlay`; export again, "
                    "or import with --match text"
                )
            logprobs = [token.logprob for token in place.likeliest]
            said, *classes = [int(number or 0) for number in numbers]
            positions.append(PositionLogprobs(said, classes, logprobs, [float(sums[name]) for name in names]))
        return Heard_(positions, record.answer, len(places), record.origin)

    def _classes(self, record: Record, counts: Counter[str]) -> HeardRow:
        """Return the log-probabilities of the labels at the answer's position, for answers of one token."""
        from outlay.train.targets.logprobs import EXCESS_MASS, PositionLogprobs, label_logprobs
        from outlay.train.targets.logprobs import TargetRow as Heard_

        label, places = self._answer(record), _present(record)
        said = places[0].said.text if places else None
        if said is None or said.strip() != label:
            raise DataError(
                f"{record.origin} answers {label!r}, but its first token is {said!r}; log-probabilities of labels need labels "
                "of one token, with its text; import with --target text"
            )
        tokens = [*places[0].likeliest, places[0].said]
        listed = {token.text or "": token.logprob for token in tokens}
        total = math.fsum(math.exp(min(logprob, 1.0)) for logprob in listed.values())
        if total > 1.0 + EXCESS_MASS:
            raise DataError(
                f"{record.origin} has probabilities that add up to {total:.4g}, above 1; log-probabilities must be natural "
                "logarithms at temperature 1"
            )
        found = label_logprobs(self.form.labels, list(listed.items()), MISSING_LABELS)
        if found is None:
            raise DataError(
                f"{record.origin} does not list every label among its {len(listed)} tokens, and what is left could give those "
                f"more than {MISSING_LABELS:.0%}; ask for more top_logprobs, or import with --target text"
            )
        logprobs, missing = found
        counts["labels"] += len(missing)
        positions = [PositionLogprobs(self.form.labels.index(label), range(len(logprobs)), logprobs)]
        return Heard_(positions, label, 1, record.origin)

    def _tokens(self, part: Sequence[Record], counts: Counter[str]) -> list[HeardRow]:
        """Return positions in the student's tokens, up to and including the closing token."""
        from outlay.train.targets.logprobs import PositionLogprobs
        from outlay.train.targets.logprobs import TargetRow as Heard_

        assert self.vocabulary is not None
        closing, limit = self.vocabulary.closing, self.form.max_target_tokens
        heard: list[list[PositionLogprobs]] = []
        for record in part:
            positions = []
            for place in _present(record):
                positions.append(self._place(place, record, counts))
                if positions[-1].unit == closing:
                    break
            if not (positions and positions[-1].unit == closing) and not record.is_cut:
                # Servers may leave out the token that ended the answer: it was generated, so it is taken as certain.
                positions.append(PositionLogprobs(closing, [closing], [0.0]))
                counts["closed"] += 1
            heard.append(positions)
        words = self.vocabulary.words([[each.unit for each in positions] for positions in heard])
        self._check_words(part, words)
        counts["cut"] += sum(len(positions) > limit for positions in heard)
        return [
            Heard_(
                positions[:limit],
                said if record.answer is None else record.answer.strip(),
                min(len(positions), limit),
                record.origin,
            )
            for record, positions, said in zip(part, heard, words, strict=True)
        ]

    def _place(self, place: Place, record: Record, counts: Counter[str]) -> PositionLogprobs:
        from outlay.train.targets.logprobs import PositionLogprobs

        unit = self._number(place.said)
        if unit is None:
            shown = place.said.text if place.said.text is not None else place.said.number
            raise DataError(
                f"{record.origin} says token {shown!r}, which is none of the tokens of {self.asked.student}, or several of them; "
                "write token ids, name a closing token with --closing, or import with --target text"
            )
        found: dict[int, float] = {}
        for token in place.likeliest:
            number = self._number(token)
            if number is None:
                counts["unknown"] += 1
            else:
                found.setdefault(number, token.logprob)
        counts["listed"] += len(place.likeliest)
        if place.said.logprob > UNKNOWN_LOGPROB:
            found.setdefault(unit, place.said.logprob)
        if not found:
            raise DataError(
                f"{record.origin} lists no token of {self.asked.student} beside {place.said.text!r}; ask for top_logprobs"
            )
        return PositionLogprobs(unit, list(found), list(found.values()))

    def _number(self, token: Token) -> int | None:
        assert self.vocabulary is not None
        by_text = self.asked.match == "text" and token.text is not None
        return self.vocabulary.number(token.text, None if by_text else token.number)

    def _check_words(self, part: Sequence[Record], words: Sequence[str]) -> None:
        """Refuse answers that the student's tokens do not decode to; blanks do not count.

        Raises:
            DataError: the first such answer.
        """
        for record, said in zip(part, words, strict=True):
            if record.answer is not None and "".join(record.answer.split()) != "".join(said.split()):
                raise DataError(
                    f"{record.origin} answers {shorten(record.answer)!r}, but its tokens read {shorten(said)!r} in the tokens "
                    f"of {self.asked.student}; import with --match text or --target text"
                )


def _own_kind(asked: Importing, own: Document) -> TargetKind:
    kind: TargetKind = own["kind"]
    if asked.target not in (None, kind, "text"):
        raise UsageError(f"--target {asked.target} is not in {asked.file}; it holds {kind}, and text")
    if asked.target == "text":
        return "text"
    if kind in ("tokens", "tags"):
        _student(asked, own)
    return kind


def _foreign_kind(asked: Importing, form: TaskSpec, first: Record) -> TargetKind:
    """Return the kind of targets that the student takes and a file of another program has."""
    has_words_only = first.places is None
    if asked.student is None:
        if asked.target not in ("classes", "text"):
            raise UsageError(
                "targets are imported for a student; name it with --student, or what to write with --target"
            )
        kind: TargetKind = "classes" if asked.target == "classes" else "text"
    else:
        from outlay.models.shape import family_of

        family = family_of(asked.student, base=asked.base)
        refuse_family(family, form, asked.student)
        reads: TargetKind = "tokens"
        if family == "encoder":
            reads = "classes" if form.kind == "classification" else "text"
        kind = asked.target or ("text" if has_words_only else reads)  # type: ignore[assignment]
        if kind == "tags" or (kind == "tokens" and family == "encoder"):
            raise UsageError(
                f"--target {kind} does not go from {asked.file} to {asked.student}; it takes {reads} or text"
            )
    if kind == "classes" and form.kind != "classification":
        raise UsageError(f"--target classes is about labels, and the question is {form.kind}; choose tokens or text")
    return kind


def _student(asked: Importing, own: Document | None) -> tuple[str, str | None]:
    student, base = (asked.student, asked.base) if asked.student is not None or own is None else own["student"]
    if student is None:
        raise UsageError("tokens are those of a student; name it with --student")
    return student, base


def _terms(
    asked: Importing, form: TaskSpec, kind: TargetKind, vocabulary: Vocabulary | None, own: Document | None
) -> SparsityRule | None:
    from outlay.train.targets.sparse_logits import SparsityRule

    if kind == "text":
        return None
    if own is not None:
        terms = SparsityRule(**{**own["terms"], "temperatures": tuple(own["terms"]["temperatures"])})
        if vocabulary is not None:
            from outlay.models.loading import n_logits

            student, base = _student(asked, own)
            if (n := n_logits(student, base or student)) < terms.vocab_size:
                raise UsageError(
                    f"{asked.file} has a vocabulary of {terms.vocab_size:,}, {student} one of {n:,}; import with --match text"
                )
        return terms
    if vocabulary is None:
        return SparsityRule(kind, len(form.labels))
    # One class at least is left out, so that the tail is there: nothing is lost, its mass is exact.
    most = min(asked.max_logits or vocabulary.size, vocabulary.size - 1)
    return SparsityRule(kind, vocabulary.size, most, asked.tail_mass, (1.0,))


def _present(record: Record) -> tuple[Place, ...]:
    if record.places is None:
        raise DataError(
            f"{record.origin} has no log-probabilities; ask the server for them, or import with --target text"
        )
    return record.places
