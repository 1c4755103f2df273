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
from outlay.standalone.inputs import DataReader
from outlay.standalone.logprob_formats import UNKNOWN_LOGPROB, Position, Record, Token
from outlay.standalone.output_dir import Document
from outlay.standalone.request import Data
from outlay.standalone.runtime import refuse_family
from outlay.storage.hashing import digest_of_file
from outlay.tasks.example import shorten
from outlay.text.legible import label_problem

if TYPE_CHECKING:
    from outlay.train.targets.logprobs import PositionLogprobs, TargetRow, Vocabulary
    from outlay.train.targets.sparse_logits import SparsityRule

MATCHES = ("ids", "text")

MISSING_LABELS = 0.01
"""Largest probability that labels a server did not list may have together."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of an import: file, rows, student, kind of targets.

    ``data``: the question, the columns of a row's source and gold answer, and, as ``file``, the rows that were asked, where the
    answers do not repeat them, in the same order or with the same ``custom_id``; ``target``: kind of the targets, ``None`` = what
    the student reads; ``match``: ``ids`` where the numbers in the file are the student's, else ``text``; ``None`` = by what the
    file has; ``closing``: the text of the teacher's closing token, where it is not the student's.
    """

    file: Path
    out: Path
    data: Data = field(default_factory=Data)
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

    options: ImportOptions
    form: TaskSpec
    kind: TargetKind
    terms: SparsityRule | None
    vocabulary: Vocabulary | None
    own: Document | None

    @classmethod
    def of(cls, options: ImportOptions, reader: DataReader, first: Record) -> ImportRequest:
        """Resolve the options by the first row of the file.

        Raises:
            UsageError: no student, or one that cannot read such targets.
        """
        header = None if first.about is None else dict(first.about)
        form = reader.form(None if header is None else TaskSpec.from_json(header["form"]))
        own = header if options.match != "text" else None
        kind = _own_kind(options, own) if own is not None else _foreign_kind(options, form, first)
        vocabulary = None
        if kind == "tokens":
            from outlay.train.targets.logprobs import vocabulary_of

            student, base = _student(options, own)
            vocabulary = vocabulary_of(student, base, options.closing)
        return cls(options, form, kind, _terms(options, form, kind, vocabulary, own), vocabulary, own)

    @property
    def settings(self) -> TeachSettings:
        """Return the teaching settings: those in the header of our own export, else the limits on logits asked for."""
        if self.own is not None:
            return TeachSettings(**self.own["settings"])
        return TeachSettings(max_logits=self.options.max_logits, tail_mass=self.options.tail_mass)

    @property
    def about(self) -> Document:
        """Return the origin of the targets, for the index: teacher, student, imported file."""
        student = [self.options.student, self.options.base]
        imported = {"file": str(self.options.file), "sha256": digest_of_file(self.options.file)}
        if self.own is not None:
            known = {name: self.own.get(name) for name in ("teacher", "vocab_size", "model_sha256")}
            return {**known, "student": self.own["student"] if student[0] is None else student, "imported": imported}
        vocab_size = self.terms.vocab_size if self.kind == "tokens" and self.terms is not None else None
        return {"teacher": str(self.options.file), "student": student, "vocab_size": vocab_size, "imported": imported}

    def to_json(self, rows: str | None) -> Document:
        """Return the request that decides the result; ``rows``: digest of the file of rows."""
        options = self.options
        return {
            "command": "targets import",
            "file_sha256": digest_of_file(options.file),
            "rows": rows,
            "form": self.form.to_json(),
            "columns": [options.data.source_column, options.data.target_column],
            "kind": self.kind,
            "student": [options.student, options.base],
            "match": options.match,
            "closing": options.closing,
            "settings": self.settings.to_json(),
        }

    def target_rows(self, part: Sequence[Record], counts: Counter[str]) -> list[TargetRow]:
        """Return the log-probabilities of rows in the units of the targets; adds to ``counts``."""
        from outlay.train.targets.logprobs import TargetRow

        if self.kind == "text":
            return [TargetRow((), self._answer(record), 0, record.origin) for record in part]
        if self.own is not None:
            rows = [self._own(record) for record in part]
            if self.vocabulary is not None and self.options.student not in (None, self.own["student"][0]):
                units = [[each.unit for each in row.positions[: row.n_real]] for row in rows]
                self._check_words(part, self.vocabulary.words(units))
            return rows
        if self.kind == "classes":
            return [self._classes(record, counts) for record in part]
        return self._tokens(part, counts)

    def _answer(self, record: Record) -> str:
        """Return the answer of a row in words; refuse one outside the label set."""
        answer = _words(record) if self.own is not None else _words(record).strip()
        if self.form.kind == "classification" and answer not in self.form.labels:
            raise LabelError(f"{record.origin} {label_problem(answer, self.form.labels)}; correct or remove the row")
        return answer

    def _own(self, record: Record) -> TargetRow:
        from outlay.train.targets.logprobs import PositionLogprobs, TargetRow

        assert self.terms is not None
        names = ["1", *(f"{t:g}" for t in self.terms.temperatures if t != 1.0)]
        answer, given = _words(record), _present(record)
        positions = []
        for position in (*given, *record.padding):
            numbers = [token.number for token in (position.token, *position.likeliest)]
            sums = position.logsumexp or {}
            if None in numbers or len(numbers) == 1 or any(sums.get(name) is None for name in names):
                raise DataError(
                    f"{record.origin} lacks token_id, top_logprobs or logsumexp of an export of `outlay`; export again, "
                    "or import with --match text"
                )
            logprobs = [token.logprob for token in position.likeliest]
            unit, *classes = [int(number or 0) for number in numbers]
            positions.append(PositionLogprobs(unit, classes, logprobs, [float(sums[name]) for name in names]))
        return TargetRow(positions, answer, len(given), record.origin)

    def _classes(self, record: Record, counts: Counter[str]) -> TargetRow:
        """Return the log-probabilities of the labels at the answer's position, for answers of one token."""
        from outlay.train.targets.logprobs import EXCESS_MASS, PositionLogprobs, TargetRow, label_logprobs

        label, positions = self._answer(record), _present(record)
        first = positions[0].token.text if positions else None
        if first is None or first.strip() != label:
            raise DataError(
                f"{record.origin} answers {label!r}, but its first token is {first!r}; log-probabilities of labels need labels "
                "of one token, with its text; import with --target text"
            )
        tokens = [*positions[0].likeliest, positions[0].token]
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
        of_label = PositionLogprobs(self.form.labels.index(label), range(len(logprobs)), logprobs)
        return TargetRow([of_label], label, 1, record.origin)

    def _tokens(self, part: Sequence[Record], counts: Counter[str]) -> list[TargetRow]:
        """Return positions in the student's tokens, up to and including the closing token."""
        from outlay.train.targets.logprobs import PositionLogprobs, TargetRow

        assert self.vocabulary is not None
        closing, limit = self.vocabulary.closing, self.form.max_target_tokens
        answers: list[list[PositionLogprobs]] = []
        for record in part:
            positions = []
            for position in _present(record):
                positions.append(self._logprobs(position, record, counts))
                if positions[-1].unit == closing:
                    break
            if not (positions and positions[-1].unit == closing) and not record.is_cut:
                # Servers may leave out the token that ended the answer: it was generated, so it is taken as certain.
                positions.append(PositionLogprobs(closing, [closing], [0.0]))
                counts["closed"] += 1
            answers.append(positions)
        words = self.vocabulary.words([[each.unit for each in positions] for positions in answers])
        self._check_words(part, words)
        counts["cut"] += sum(len(positions) > limit for positions in answers)
        return [
            TargetRow(
                positions[:limit],
                text if record.answer is None else record.answer.strip(),
                min(len(positions), limit),
                record.origin,
            )
            for record, positions, text in zip(part, answers, words, strict=True)
        ]

    def _logprobs(self, position: Position, record: Record, counts: Counter[str]) -> PositionLogprobs:
        from outlay.train.targets.logprobs import PositionLogprobs

        unit = self._number(position.token)
        if unit is None:
            shown = position.token.text if position.token.text is not None else position.token.number
            raise DataError(
                f"{record.origin} says token {shown!r}, which is none of the tokens of {self.options.student}, or several of "
                "them; write token ids, name a closing token with --closing, or import with --target text"
            )
        found: dict[int, float] = {}
        for token in position.likeliest:
            number = self._number(token)
            if number is None:
                counts["unknown"] += 1
            else:
                found.setdefault(number, token.logprob)
        counts["listed"] += len(position.likeliest)
        if position.token.logprob > UNKNOWN_LOGPROB:
            found.setdefault(unit, position.token.logprob)
        if not found:
            raise DataError(
                f"{record.origin} lists no token of {self.options.student} beside {position.token.text!r}; ask for top_logprobs"
            )
        return PositionLogprobs(unit, list(found), list(found.values()))

    def _number(self, token: Token) -> int | None:
        assert self.vocabulary is not None
        by_text = self.options.match == "text" and token.text is not None
        return self.vocabulary.number(token.text, None if by_text else token.number)

    def _check_words(self, part: Sequence[Record], words: Sequence[str]) -> None:
        """Refuse answers that the student's tokens do not decode to; blanks do not count."""
        for record, decoded in zip(part, words, strict=True):
            if record.answer is not None and "".join(record.answer.split()) != "".join(decoded.split()):
                raise DataError(
                    f"{record.origin} answers {shorten(record.answer)!r}, but its tokens read {shorten(decoded)!r} in the tokens "
                    f"of {self.options.student}; import with --match text or --target text"
                )


def _own_kind(options: ImportOptions, own: Document) -> TargetKind:
    kind: TargetKind = own["kind"]
    if options.target not in (None, kind, "text"):
        raise UsageError(f"--target {options.target} is not in {options.file}; it holds {kind}, and text")
    if options.target == "text":
        return "text"
    if kind in ("tokens", "tags"):
        _student(options, own)
    return kind


def _foreign_kind(options: ImportOptions, form: TaskSpec, first: Record) -> TargetKind:
    """Return the kind of targets that the student takes and a file of another program has."""
    has_words_only = first.positions is None
    if options.student is None:
        if options.target not in ("classes", "text"):
            raise UsageError(
                "targets are imported for a student; name it with --student, or what to write with --target"
            )
        kind: TargetKind = "classes" if options.target == "classes" else "text"
    else:
        from outlay.models.shape import family_of

        family = family_of(options.student, base=options.base)
        refuse_family(family, form, options.student)
        reads: TargetKind = "tokens"
        if family == "encoder":
            reads = "classes" if form.kind == "classification" else "text"
        kind = options.target or ("text" if has_words_only else reads)  # type: ignore[assignment]
        if kind == "tags" or (kind == "tokens" and family == "encoder"):
            raise UsageError(
                f"--target {kind} does not go from {options.file} to {options.student}; it takes {reads} or text"
            )
    if kind == "classes" and form.kind != "classification":
        raise UsageError(f"--target classes is about labels, and the question is {form.kind}; choose tokens or text")
    return kind


def _student(options: ImportOptions, own: Document | None) -> tuple[str, str | None]:
    student, base = (options.student, options.base) if options.student is not None or own is None else own["student"]
    if student is None:
        raise UsageError("tokens are those of a student; name it with --student")
    return student, base


def _terms(
    options: ImportOptions, form: TaskSpec, kind: TargetKind, vocabulary: Vocabulary | None, own: Document | None
) -> SparsityRule | None:
    from outlay.train.targets.sparse_logits import SparsityRule

    if kind == "text":
        return None
    if own is not None:
        terms = SparsityRule(**{**own["terms"], "temperatures": tuple(own["terms"]["temperatures"])})
        if vocabulary is not None:
            from outlay.models.loading import n_logits

            student, base = _student(options, own)
            if (n := n_logits(student, base or student)) < terms.vocab_size:
                raise UsageError(
                    f"{options.file} has a vocabulary of {terms.vocab_size:,}, {student} one of {n:,}; import with --match text"
                )
        return terms
    if vocabulary is None:
        return SparsityRule(kind, len(form.labels))
    # One class at least is left out, so that the tail is there: nothing is lost, its mass is exact.
    most = min(options.max_logits or vocabulary.size, vocabulary.size - 1)
    return SparsityRule(kind, vocabulary.size, most, options.tail_mass, (1.0,))


def _words(record: Record) -> str:
    if record.answer is None:
        raise DataError(f"{record.origin} has no answer in words; add one or remove the row")
    return record.answer


def _present(record: Record) -> tuple[Position, ...]:
    if record.positions is None:
        raise DataError(
            f"{record.origin} has no log-probabilities; ask the server for them, or import with --target text"
        )
    return record.positions
