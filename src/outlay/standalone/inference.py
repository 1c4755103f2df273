"""Inference with a trained model as single steps: teach, predict, evaluate, in blocks of rows.

A written block is not made again, so a killed step goes on where it was; of several processes each takes every n-th block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from outlay.errors import MissingData, UnknownModel, UsageError
from outlay.hardware.precision import AUTO, check_asked, check_worker
from outlay.models.reference import fingerprint
from outlay.models.shape import read_config
from outlay.models.window import check_handover, window_in, window_of
from outlay.settings import BLOCK_ROWS, TeachSettings, check_seed
from outlay.spec import Family, TargetKind, TargetSpec, TaskSpec, cut_lines, named_class, target_spec
from outlay.standalone.evaluator import MetricAsked, about_scores, check_scores, outside, scorer_of, write_scores
from outlay.standalone.inputs import DataOptions, DataReader, TaskRow, rows_digest, sources_of
from outlay.standalone.output_dir import Document, OutputDir, json_lines, read_object
from outlay.standalone.prediction_file import PREDICTION
from outlay.standalone.profiling import new_stopwatch, profile_of_parts, seconds_of
from outlay.standalone.runtime import (
    RuntimeOptions,
    StepReport,
    alone,
    flops_of,
    n_processes,
    on_main,
    rank,
    refuse_family,
    resolved,
    wait_for_all,
)
from outlay.standalone.targets_dir import ANSWERS, INDEX, ROWS, answer_lines, block_name, index_of, kept_of
from outlay.storage.hashing import digest_of_file
from outlay.text.listener import Listener
from outlay.train.progress import TokenCounter

SAVED = "outlay.json"
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Model that `outlay` trained: folder, family and form of the task.

    ``lowered``: a line for each limit of the form that the model cannot keep; ``form``: already lowered to the model's limits.
    """

    folder: Path
    family: Family
    form: TaskSpec
    lowered: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> TrainedModel:
        """Read the description beside the weights.

        Raises:
            UnknownModel: no such folder, or no model of ours in it.
        """
        try:
            document = read_object(folder / SAVED)
            family, form = document["family"], TaskSpec.from_json(document["form"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UnknownModel(
                f"{folder} holds no model that `outlay` trained ({SAVED} is missing); make one with `outlay finetune`"
            ) from None
        window = window_in(read_config(folder), family)
        return cls(folder, family, window.fit(form, str(folder)), tuple(window.lines(form, str(folder))))

    def sources(self, rows: Sequence[TaskRow]) -> list[tuple[str, ...]]:
        """Return the inputs of rows for this model, one or two segments each."""
        return sources_of(rows, self.family, self.form.kind)


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """Options that teach, predict and evaluate share.

    ``file``, else the ``split`` of ``asked.task``: where rows come from; ``n_gold``: train rows whose labels the pool may carry;
    ``batch_size``: rows per forward pass, part of the request since padding changes bits; ``block_rows``: see `BLOCK_ROWS`;
    ``is_precision_asked``: whether `precision` was asked for, rather than resolved from ``auto``.
    """

    model: Path
    out: Path
    asked: DataOptions = field(default_factory=DataOptions)
    file: Path | None = None
    split: str = "test"
    max_rows: int | None = None
    n_gold: int | None = None
    seed: int = 0
    precision: str = AUTO
    batch_size: int = 64
    beams: int = 1
    block_rows: int = BLOCK_ROWS
    running: RuntimeOptions = field(default_factory=RuntimeOptions)
    is_precision_asked: bool = True

    def __post_init__(self) -> None:
        check_asked(self.precision)
        TeachSettings(beams=self.beams, batch_size=self.batch_size)
        check_seed(self.seed)
        self.running.check()

    def resolved(self, listener: Listener) -> InferenceOptions:
        """Return these options with ``auto`` precision resolved for this machine; tells the listener of an unusual choice."""
        precision = resolved(self.precision, listener)
        return replace(self, precision=precision, is_precision_asked=self.precision != AUTO)

    def check_worker(self) -> None:
        """Refuse a precision that is unsuitable on the calling machine, which may be a worker's.

        Raises:
            UsageError: the precision is far slower here than this machine's own.
        """
        if not self.is_precision_asked:
            check_worker(self.precision)

    def rows(self, inputs: DataReader, *, needs_target: bool = False) -> list[TaskRow]:
        """Return the rows asked for.

        Raises:
            UsageError: neither task nor file.
            DataError: rows that cannot be read or used.
        """
        if self.file is not None:
            return inputs.file(self.file, n=self.max_rows, needs_target=needs_target)
        if inputs.task is None:
            raise UsageError("there are no rows; name a --task or a --file")
        return inputs.split(self.split, n=self.max_rows, seed=self.seed, n_gold=self.n_gold)

    def request(self, command: str, rows: Sequence[TaskRow], more: Document) -> Document:
        """Return the request: everything a user can ask for that decides the result."""
        return {
            "command": command,
            "model": str(self.model),
            "model_sha256": on_main(lambda: fingerprint(str(self.model))),
            "rows": rows_digest(rows),
            "n_rows": len(rows),
            "precision": self.precision,
            **more,
            "threads": self.running.threads,
        }


@dataclass(frozen=True, slots=True)
class Teaching:
    """Options of teaching alone: student, kind of targets, settings of the answers."""

    student: str | None = None
    base: str | None = None
    target: str | None = None
    settings: TeachSettings = field(default_factory=TeachSettings)


def teach(asked: InferenceOptions, teaching: Teaching, listener: Listener) -> StepReport:
    """Write a teacher's targets for a student into a folder, in blocks.

    Raises:
        OutlayError: unsuitable teacher, student, rows or place; one line.
    """
    saved, inputs = TrainedModel.open(asked.model), DataReader(asked.asked)
    form = inputs.form(saved.form)
    asked, rows = asked.resolved(listener), [_with_named_gold(row, form) for row in asked.rows(inputs)]
    handed = _handover(saved, form, teaching)
    kind, vocab_size = handed.target, handed.vocab_size
    if teaching.settings.keep_padding and kind != "tokens":
        raise UsageError(f"--keep-padding is about the tokens of an answer, and these targets are {kind}; leave it out")
    about = {
        "teacher": str(asked.model),
        "student": [teaching.student, teaching.base],
        "n_rows": len(rows),
        "vocab_size": vocab_size,
    }
    request = asked.request("teach", rows, {"kind": kind, "settings": teaching.settings.to_json(), **about})
    home = OutputDir.folder(asked.out)

    work = _Teach(saved, asked, kind, teaching.settings, vocab_size)

    def gather(blocks: Sequence[Path]) -> dict[str, Any]:
        from outlay.train.targets.targets import SparseTargets

        _write_rows(home, rows, blocks)
        digests = {path.name: digest_of_file(path) for path in blocks}
        identity = {**about, "model_sha256": request["model_sha256"]}
        home.write_json(home.out / INDEX, index_of(form, kind, teaching.settings, digests, identity))
        kept = kept_of(SparseTargets.open(path) for path in blocks)
        return {"targets": str(asked.out), "kind": kind, "n_blocks": len(blocks), "kept": kept}

    return _Blocks(asked, saved, rows, home, request, block_name, inputs.notes).run(work, gather, listener)


def _with_named_gold(row: TaskRow, form: TaskSpec) -> TaskRow:
    """Return the row with its gold answer spelled as in the label set; other answers stay."""
    return (
        row
        if row.gold is None or form.kind != "classification"
        else replace(row, gold=named_class(row.gold, form.labels))
    )


def predict(asked: InferenceOptions, listener: Listener) -> StepReport:
    """Write a model's answers as JSON lines: source, prediction, and gold where it is known.

    Raises:
        OutlayError: unsuitable model, rows or place; one line.
    """
    saved, inputs = TrainedModel.open(asked.model), DataReader(asked.asked)
    inputs.form(saved.form)
    rows = asked.rows(inputs)
    return _predict(asked.resolved(listener), saved, rows, OutputDir.file(asked.out), listener, inputs.notes)


def _predict(
    asked: InferenceOptions,
    saved: TrainedModel,
    rows: Sequence[TaskRow],
    home: OutputDir,
    listener: Listener,
    notes: Sequence[str],
) -> StepReport:
    more = {"batch_size": asked.batch_size, "beams": asked.beams}
    request = asked.request("predict", rows, more)

    def gather(blocks: Sequence[Path]) -> dict[str, Any]:
        home.write(home.out, b"".join(path.read_bytes() for path in blocks))
        return {"predictions": str(home.out)}

    blocks = _Blocks(asked, saved, rows, home, request, lambda number: f"{number:05d}.jsonl", notes)
    return blocks.run(_Predict(saved, asked), gather, listener)


def evaluate(asked: InferenceOptions, metric: MetricAsked, listener: Listener) -> StepReport:
    """Predict, score every statistic in both readings, and write ``scores.json`` beside the predictions.

    Raises:
        OutlayError: as `predict`; rows without gold answers; a metric that does not fit.
    """
    saved, inputs = TrainedModel.open(asked.model), DataReader(asked.asked)
    form = inputs.form(saved.form)
    rows = inputs.checked(asked.rows(inputs, needs_target=True), form)
    scorer = scorer_of(metric, form, inputs.task)
    about = {"model_sha256": on_main(lambda: fingerprint(str(asked.model))), **about_scores(scorer, rows)}
    on_main(lambda: check_scores(asked.out, about, overwrite=asked.running.overwrite))
    home = OutputDir.file(asked.out / PREDICTIONS)
    predicted = _predict(asked.resolved(listener), saved, rows, home, listener, inputs.notes)

    def score() -> tuple[dict[str, Any], list[str]]:
        said = [json.loads(line)[PREDICTION] for line in _lines(asked.out / PREDICTIONS)]
        return write_scores(scorer, said, rows, asked.out, about), outside(said, form)

    facts, unknown = on_main(score)
    return StepReport(
        command="evaluate",
        out=str(asked.out),
        facts={**predicted.facts, **facts},
        counts=[*predicted.counts, *unknown],
        n_tokens_inferred=predicted.n_tokens_inferred,
        flops=predicted.flops,
        seconds=predicted.seconds,
        is_old=predicted.is_old,
    )


def _handover(saved: TrainedModel, form: TaskSpec, teaching: Teaching) -> TargetSpec:
    """Return the kind of targets that goes from the teacher to the student.

    Raises:
        UsageError: neither a student nor a kind is named, or targets of this kind do not go from one to the other.
    """
    student, wanted = teaching.student, teaching.target
    if wanted is not None and wanted not in get_args(TargetKind):
        raise UsageError(f"--target {wanted!r} is unknown; choose one of {', '.join(get_args(TargetKind))}")
    if student is None:
        if wanted is None:
            raise UsageError("targets are taught for a student; name it with --student, or what to write with --target")
        return TargetSpec(wanted)  # type: ignore[arg-type]
    from outlay.models.loading import n_logits, same_tokenizer
    from outlay.models.shape import family_of

    family = family_of(student, base=teaching.base)
    refuse_family(family, form, student)
    teacher, base = str(saved.folder), teaching.base or student
    sides = (saved.family, n_logits(teacher, teacher)), (family, n_logits(student, base))
    found = target_spec(form.kind, *sides, lambda: same_tokenizer(teacher, teacher, student, base))
    if wanted is not None and wanted not in (found.target, "text"):
        raise UsageError(
            f"--target {wanted} does not go from this teacher to {student}; it takes {found.target} or text"
        )
    chosen = found if wanted in (None, found.target) else TargetSpec("text")
    check_handover(chosen.target, form, window_of(student, base=teaching.base).fit(form, student), student)
    return chosen


def _write_rows(home: OutputDir, rows: Sequence[TaskRow], blocks: Sequence[Path]) -> None:
    """Write the rows and the teacher's answers as JSON lines, for readers and for the student."""
    from outlay.train.targets.targets import SparseTargets

    home.write(home.out / ROWS, json_lines([row.to_json() for row in rows]))
    answers = [answer for path in blocks for answer in SparseTargets.open(path).answers]
    home.write(home.out / ANSWERS, json_lines(answer_lines(rows, answers)))


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True, slots=True)
class _Made:
    """One block: the bytes of its file and its tokens; ``parts``: seconds by part, where a profile was asked for."""

    data: bytes
    n_tokens: int
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Teach:
    """Block function of `teach`, called on an executor's machine with the model's folder there."""

    saved: TrainedModel
    asked: InferenceOptions
    kind: TargetKind
    settings: TeachSettings
    vocab_size: int | None

    def __call__(self, folder: Path, part: Sequence[TaskRow]) -> _Made:
        from outlay.train import api as train_api

        self.asked.check_worker()
        train_api.use_threads(self.asked.running.threads)
        gauge, stopwatch = TokenCounter(), new_stopwatch(self.asked.running.profile)
        targets = train_api.teach(
            folder,
            self.saved.sources(part),
            target=self.kind,
            settings=self.settings,
            precision=self.asked.precision,
            meter=gauge,
            vocab_size=self.vocab_size,
            device_map=self.asked.running.device_map,
            profiler=stopwatch,
        )
        return _Made(targets.to_bytes(), gauge.n_inferred, seconds_of(stopwatch))


@dataclass(frozen=True, slots=True)
class _Predict:
    """Block function of `predict`: a model's answers to the rows of a block, as JSON lines."""

    saved: TrainedModel
    asked: InferenceOptions

    def __call__(self, folder: Path, part: Sequence[TaskRow]) -> _Made:
        from outlay.train import api as train_api

        self.asked.check_worker()
        train_api.use_threads(self.asked.running.threads)
        gauge = TokenCounter()
        said = train_api.predict(
            folder,
            self.saved.sources(part),
            precision=self.asked.precision,
            meter=gauge,
            beams=self.asked.beams,
            batch_size=self.asked.batch_size,
            device_map=self.asked.running.device_map,
        )
        return _Made(json_lines(answer_lines(part, said)), gauge.n_inferred)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Block-wise inference over rows, with its result in one output folder or file."""

    asked: InferenceOptions
    saved: TrainedModel
    rows: Sequence[TaskRow]
    home: OutputDir
    request: Document
    name: Callable[[int], str]
    notes: Sequence[str] = ()

    def run(
        self,
        work: Callable[[Path, Sequence[TaskRow]], _Made],
        gather: Callable[[Sequence[Path]], dict[str, Any]],
        listener: Listener,
    ) -> StepReport:
        """Make the missing blocks, then gather all; the same request again makes no block twice."""
        running, home = self.asked.running, self.home
        summary = on_main(lambda: home.look(self.request, overwrite=running.overwrite))
        if summary is not None:
            return StepReport.again(summary)
        running.prepare()
        on_main(lambda: home.open(self.request))
        for line in self.saved.lowered:
            listener.say(line)
        began = time.monotonic()
        with alone(home):
            listener.begin(f"{self.request['command']} {self.asked.model}")
            self._make(work, listener)
            wait_for_all()
            return on_main(lambda: self._finish(gather, time.monotonic() - began))

    def _make(self, work: Callable[[Path, Sequence[TaskRow]], _Made], listener: Listener) -> None:
        """Make the missing blocks of this process's share, each written as soon as it is made."""
        n_rows, shares = len(self.rows), n_processes()
        own = range(rank(), self._n_blocks, shares)
        missing = {self.name(number): number for number in own if not self._path(number).exists()}
        n_done = sum(len(self._part(number)) for number in own if number not in missing.values())
        n_before, began = n_done, time.monotonic()
        last = began
        jobs = ((name, self._part(number)) for name, number in missing.items())
        with closing(self.asked.running.executor().run(work, jobs, self.saved.folder)) as made:
            for name, block in made:
                number, now = missing[name], time.monotonic()
                # First its count, then the block: a block that is written has its count. Seconds are those since the block
                # before, on whichever machine it was made, so that they add up to the wall time.
                took = {"tokens": block.n_tokens, "seconds": round(now - last, 3), "parts": block.parts}
                self.home.write_json(self._count(number), took)
                self.home.write(self._path(number), block.data)
                last, n_done = now, n_done + len(self._part(number))
                speed = (n_done - n_before) * shares / max(now - began, 1e-9)
                listener.progress(min(n_done * shares, n_rows), n_rows, f"{speed:,.0f} rows/s")

    def _finish(self, gather: Callable[[Sequence[Path]], dict[str, Any]], seconds: float) -> StepReport:
        numbers = range(self._n_blocks)
        missing = [self._path(number).name for number in numbers if not self._path(number).exists()]
        if missing:
            raise MissingData(f"{missing[0]} is not in {self.home.out}; its process was stopped, run the command again")
        facts = {"n_rows": len(self.rows), "n_processes": n_processes(), **gather([self._path(i) for i in numbers])}
        counts = [read_object(self._count(number)) for number in numbers]
        n_tokens = sum(int(count["tokens"]) for count in counts)
        folder = str(self.saved.folder)
        flops = flops_of(folder, None, self.saved.form, 0, n_tokens)
        if self.asked.running.profile:
            facts["profile"] = profile_of_parts([count["parts"] for count in counts], flops, self.asked.precision)
        outcome = StepReport(
            command=self.request["command"],
            out=str(self.home.out),
            facts=facts,
            counts=[
                *self.notes,
                *self.saved.lowered,
                *self._cut(),
            ],
            n_tokens_inferred=n_tokens,
            flops=flops,
            # Blocks of an earlier attempt count as well.
            seconds=round(max(seconds, sum(float(count["seconds"]) for count in counts) / n_processes()), 3),
        )
        self.home.finish(outcome.to_json())
        return outcome

    def _cut(self) -> list[str]:
        from outlay.train.api import count_cut

        folder, form = str(self.saved.folder), self.saved.form
        n_truncated = count_cut(folder, folder, form, self.saved.sources(self.rows))
        return cut_lines(form, len(self.rows), n_truncated=n_truncated)

    @property
    def _n_blocks(self) -> int:
        return -(-len(self.rows) // self.asked.block_rows)

    def _part(self, number: int) -> Sequence[TaskRow]:
        return self.rows[number * self.asked.block_rows : (number + 1) * self.asked.block_rows]

    def _path(self, number: int) -> Path:
        return (self.home.out if self.home.is_folder else self.home.work) / self.name(number)

    def _count(self, number: int) -> Path:
        return self.home.work / f"count-{number:05d}.json"
