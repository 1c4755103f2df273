"""Inference with a trained model as single steps: teach, predict, evaluate, in blocks of rows.

A written block is not made again, so a killed step goes on where it was; of several processes each takes every n-th block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from outlay.errors import MissingData, UsageError
from outlay.export.model_dir import handed_over, model_folder
from outlay.hardware.precision import AUTO, check_asked, check_worker, remarks, resolve
from outlay.models.reference import folder_fingerprint
from outlay.models.window import check_handover, window_of
from outlay.settings import BLOCK_ROWS, TeachSettings, check_seed
from outlay.spec import TargetKind, TargetSpec, TaskSpec, cut_lines, target_spec
from outlay.standalone.evaluator import MetricAsked, about_scores, answer_remarks, check_scores, scorer_of, write_scores
from outlay.standalone.inputs import DataReader, TaskRow, rows_digest, with_named_gold
from outlay.standalone.output_dir import Document, OutputDir, json_lines, read_object
from outlay.standalone.prediction_file import CONFIDENCE, read_confidences, read_predictions
from outlay.standalone.prediction_table import PROBABILITIES, check_output, other_columns, table_of
from outlay.standalone.profiling import new_profiler, profile_of_parts, seconds_of
from outlay.standalone.request import Data
from outlay.standalone.runtime import (
    RuntimeOptions,
    StepReport,
    flops_of,
    lock,
    n_processes,
    on_main,
    rank,
    refuse_family,
    wait_for_all,
)
from outlay.standalone.targets_dir import answer_lines, block_name, index_of, write_index
from outlay.standalone.trained_model import TrainedModel
from outlay.storage.hashing import digest_of_file, key_of
from outlay.text.listener import Listener
from outlay.train.progress import TokenCounter

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """Options that teach, predict and evaluate share.

    ``data``: rows of the file, else of the task's split; ``seed``: of their order; ``batch_size``: rows per forward pass, part of
    the request since padding changes bits; ``block_rows``: see `BLOCK_ROWS`; ``is_precision_asked``: false where `precision` was
    resolved from ``auto``.
    """

    model: Path
    out: Path
    data: Data = field(default_factory=Data)
    seed: int = 0
    precision: str = AUTO
    batch_size: int = 64
    beams: int = 1
    block_rows: int = BLOCK_ROWS
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    is_precision_asked: bool = True

    def __post_init__(self) -> None:
        check_asked(self.precision)
        TeachSettings(beams=self.beams, batch_size=self.batch_size)
        check_seed(self.seed)
        self.runtime.check()

    def resolved(self, listener: Listener) -> InferenceOptions:
        """Return these options with ``auto`` precision resolved for this machine; tells the listener of an unusual choice."""
        precision = on_main(lambda: resolve(self.precision))
        for line in remarks([self.precision]):
            listener.say(line)
        return replace(self, precision=precision, is_precision_asked=self.precision != AUTO)

    def prepare_worker(self) -> None:
        """Set the threads of the calling machine, which may be a worker's, and refuse a precision that does not suit it.

        Raises:
            UsageError: the precision is far slower here than this machine's own.
        """
        from outlay.train.api import use_threads

        if not self.is_precision_asked:
            check_worker(self.precision)
        use_threads(self.runtime.threads)

    def on_model(self) -> InferenceOptions:
        """Return these options with the model that a results folder handed over in the place of that folder."""
        return replace(self, model=model_folder(self.model))

    def rows(
        self, reader: DataReader, *, split: str = "test", needs_target: bool = False, takes_empty: bool = False
    ) -> list[TaskRow]:
        """Return the rows asked for; ``split``: of the task, where none is named; ``takes_empty``: of a file, those without text.

        Raises:
            UsageError: neither task nor file.
            DataError: rows that cannot be read or used.
        """
        data = self.data
        if data.file is not None:
            file, n = Path(data.file), data.max_rows
            return reader.file(file, n=n, needs_target=needs_target, takes_empty=takes_empty)
        if reader.task is None:
            raise UsageError("there are no rows; name a --task or a --file")
        return reader.split(data.split or split, n=data.max_rows, seed=self.seed, n_gold=data.max_train_rows)

    def request(self, command: str, rows: Sequence[TaskRow], more: Document) -> Document:
        """Return the request: everything a user can ask for that decides the result."""
        return {
            "command": command,
            "model": str(self.model),
            "model_sha256": on_main(lambda: folder_fingerprint(self.model)),
            "rows": rows_digest(rows),
            "n_rows": len(rows),
            "precision": self.precision,
            **more,
            "threads": self.runtime.threads,
        }


@dataclass(frozen=True, slots=True)
class Teaching:
    """Options of teaching alone: student, kind of targets, settings of the answers."""

    student: str | None = None
    base: str | None = None
    target: str | None = None
    settings: TeachSettings = field(default_factory=TeachSettings)


def teach(options: InferenceOptions, teaching: Teaching, listener: Listener) -> StepReport:
    """Write a teacher's targets for a student into a folder, in blocks.

    Raises:
        OutlayError: unsuitable teacher, student, rows or output; one line.
    """
    options = options.on_model()
    model, reader = TrainedModel.open(options.model), DataReader(options.data)
    form, settings = reader.form(model.form), teaching.settings
    options = replace(options.resolved(listener), seed=settings.seed)
    rows = [with_named_gold(row, form) for row in options.rows(reader, split="pool")]
    handed = _handover(model, form, teaching)
    kind = handed.target
    if settings.keep_padding and kind != "tokens":
        raise UsageError(f"--keep-padding is about the tokens of an answer, and these targets are {kind}; leave it out")
    about = {
        "teacher": str(options.model),
        "student": [teaching.student, teaching.base],
        "n_rows": len(rows),
        "vocab_size": handed.vocab_size,
    }
    request = options.request("teach", rows, {"kind": kind, "settings": settings.to_json(), **about})
    output = OutputDir.folder(options.out)

    def gather(blocks: Sequence[Path]) -> dict[str, Any]:
        digests = {path.name: digest_of_file(path) for path in blocks}
        identity = {**about, "model_sha256": request["model_sha256"]}
        return write_index(output, rows, index_of(form, kind, settings, digests, identity))

    blocks = _Blocks(options, model, rows, output, request, block_name, reader.notes)
    return blocks.run(partial(_teach_block, model, options, handed, settings), gather, listener)


def predict(options: InferenceOptions, listener: Listener, *, probabilities: bool = False) -> StepReport:
    """Write a model's answers as JSON lines, CSV or TSV, with the columns of the rows, a classifier's probability of the answer
    (``probabilities``: of each label), and gold where it is known. Rows without text are answered with nothing.

    Raises:
        OutlayError: unsuitable model, rows or output; one line.
    """
    check_output(options.out)
    options = options.on_model()
    model = TrainedModel.open(options.model)
    if probabilities and model.temperature is None:
        raise UsageError(f"{options.model} has no probabilities of labels, since it is no classifier; leave them out")
    reader = DataReader(options.data, model.rows)
    reader.form(model.form)
    rows = options.rows(reader, takes_empty=True)
    columns = other_columns(reader.columns, reader.used, options.out)
    n_empty = sum(not row.text for row in rows)
    notes = [*reader.notes, f"{n_empty:,} of {len(rows):,} rows have no text and are answered with nothing"]
    output = OutputDir.file(options.out)
    answering = _Answering(model, options.resolved(listener), columns, probabilities)
    return _predict(answering, rows, output, notes if n_empty else reader.notes, listener)


@dataclass(frozen=True, slots=True)
class _Answering:
    """Options of the answers of a model; ``columns``: of each row, to be kept in the file."""

    model: TrainedModel
    options: InferenceOptions
    columns: Sequence[Mapping[str, Any]] = ()
    probabilities: bool = False


def _predict(
    answering: _Answering, rows: Sequence[TaskRow], output: OutputDir, notes: Sequence[str], listener: Listener
) -> StepReport:
    options, columns = answering.options, answering.columns
    more: Document = {"batch_size": options.batch_size, "beams": options.beams}
    more |= {"columns": key_of([dict(row) for row in columns])} if columns else {}
    more |= {"probabilities": True} if answering.probabilities else {}
    request = options.request("predict", rows, more)

    def gather(blocks: Sequence[Path]) -> dict[str, Any]:
        lines = [json.loads(line) for path in blocks for line in path.read_text(encoding="utf-8").split("\n") if line]
        output.write(output.out, table_of(lines, columns, output.out))
        return {"predictions": str(output.out)}

    blocks = _Blocks(options, answering.model, rows, output, request, "{:05d}.jsonl".format, notes)
    return blocks.run(partial(_predict_block, answering), gather, listener)


def evaluate(options: InferenceOptions, metric: MetricAsked, listener: Listener) -> StepReport:
    """Predict, score every statistic in both readings, and write ``scores.json`` beside the predictions.

    Raises:
        OutlayError: as `predict`; rows without gold answers; a metric that does not fit.
    """
    options = options.on_model()
    model = TrainedModel.open(options.model)
    reader = DataReader(_own_task(options), model.rows)
    form = reader.form(model.form)
    rows = reader.checked(options.rows(reader, needs_target=True), form)
    scorer = scorer_of(metric, form, reader.task)
    about = {"model_sha256": on_main(lambda: folder_fingerprint(options.model)), **about_scores(scorer, rows)}
    on_main(lambda: check_scores(options.out, about, overwrite=options.runtime.overwrite))
    output = OutputDir.file(options.out / PREDICTIONS)
    predicted = _predict(_Answering(model, options.resolved(listener)), rows, output, reader.notes, listener)

    def score() -> tuple[dict[str, Any], list[str]]:
        answers = read_predictions(output.out)
        calibration = _calibration(model, output.out, answers, rows)
        return write_scores(scorer, answers, rows, options.out, about, calibration), answer_remarks(answers, form)

    scores, more = on_main(score)
    return replace(
        predicted,
        command="evaluate",
        out=str(options.out),
        facts={**predicted.facts, **scores},
        counts=[*predicted.counts, *more],
    )


def _own_task(options: InferenceOptions) -> Data:
    """Return the data asked for; where none is named, the task that a handed-over model was made for."""
    data, known = options.data, handed_over(options.model)
    if data.task is not None or data.file is not None or known is None:
        return data
    # A model that was fetched from a hub names no task file.
    return replace(data, task=known.get("task"))


def _calibration(
    model: TrainedModel, predictions: Path, answers: Sequence[str], rows: Sequence[TaskRow]
) -> dict[str, Any]:
    """Return the calibration error of a classifier and the temperature of its probabilities; nothing for other models."""
    from outlay.metrics.calibration import N_BINS, calibration_error_of

    confidences = read_confidences(predictions)
    if model.temperature is None or confidences is None or not rows:
        return {}
    error = calibration_error_of(confidences, answers, [row.gold or "" for row in rows])
    return {"ece": error, "ece_bins": N_BINS, "temperature": model.temperature}


def _handover(model: TrainedModel, form: TaskSpec, teaching: Teaching) -> TargetSpec:
    """Return the kind of targets that goes from the teacher to the student; refuse another that was asked for."""
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
    teacher, base = str(model.folder), teaching.base or student
    found = TargetSpec("classes")
    if model.method is None:
        sides = (model.family, n_logits(teacher, teacher)), (family, n_logits(student, base))
        found = target_spec(form.kind, *sides, lambda: same_tokenizer(teacher, teacher, student, base))
    if wanted is not None and wanted not in (found.target, "text"):
        raise UsageError(
            f"--target {wanted} does not go from this teacher to {student}; it takes {found.target} or text"
        )
    chosen = found if wanted in (None, found.target) else TargetSpec("text")
    check_handover(chosen.target, form, window_of(student, base=teaching.base).fit(form, student), student)
    return chosen


@dataclass(frozen=True, slots=True)
class _Block:
    """One block: the bytes of its file and its tokens; ``parts``: seconds by part, where a profile was asked for."""

    data: bytes
    n_tokens: int
    parts: dict[str, float] = field(default_factory=dict)


BlockFn = Callable[[Path, Sequence[TaskRow]], _Block]
"""Makes the block of some rows, on an executor's machine, with the model in a folder there."""


def _teach_block(
    model: TrainedModel,
    options: InferenceOptions,
    handed: TargetSpec,
    settings: TeachSettings,
    folder: Path,
    rows: Sequence[TaskRow],
) -> _Block:
    from outlay.train import api as train_api

    options.prepare_worker()
    counter, profiler = TokenCounter(), new_profiler(options.runtime.profile)
    targets = train_api.teach(
        folder,
        model.sources(rows),
        target=handed.target,
        settings=settings,
        precision=options.precision,
        meter=counter,
        vocab_size=handed.vocab_size,
        device_map=options.runtime.device_map,
        profiler=profiler,
    )
    return _Block(targets.to_bytes(), counter.n_inferred, seconds_of(profiler))


def _predict_block(answering: _Answering, folder: Path, rows: Sequence[TaskRow]) -> _Block:
    from outlay.train import api as train_api

    model, options = answering.model, answering.options
    options.prepare_worker()
    counter = TokenCounter()
    asked = [row for row in rows if row.text]
    predicted = train_api.predict(
        folder,
        model.sources(asked),
        precision=options.precision,
        meter=counter,
        beams=options.beams,
        batch_size=options.batch_size,
        device_map=options.runtime.device_map,
    )
    lines = answer_lines(asked, predicted.answers)
    if predicted.probabilities is not None:
        from outlay.metrics.calibration import N_DIGITS, confidences_of

        confidences = confidences_of(predicted.probabilities).tolist()
        lines = [{**line, CONFIDENCE: each} for line, each in zip(lines, confidences, strict=True)]
        if answering.probabilities:
            shares = predicted.probabilities.astype(float).round(N_DIGITS).tolist()
            named = [dict(zip(model.form.labels, row, strict=True)) for row in shares]
            lines = [{**line, PROBABILITIES: each} for line, each in zip(lines, named, strict=True)]
    answered = iter(lines)
    unanswered = iter(answer_lines([row for row in rows if not row.text], [""] * (len(rows) - len(asked))))
    return _Block(json_lines([next(answered if row.text else unanswered) for row in rows]), counter.n_inferred)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Block-wise inference over rows, with its result in one output folder or file."""

    options: InferenceOptions
    model: TrainedModel
    rows: Sequence[TaskRow]
    output: OutputDir
    request: Document
    name: Callable[[int], str]
    notes: Sequence[str]

    def run(self, make: BlockFn, gather: Callable[[Sequence[Path]], dict[str, Any]], listener: Listener) -> StepReport:
        """Make the missing blocks, then gather all; the same request again makes no block twice."""
        runtime, output = self.options.runtime, self.output
        summary = on_main(lambda: output.check(self.request, overwrite=runtime.overwrite))
        if summary is not None:
            return StepReport.of_finished(summary)
        runtime.prepare()
        on_main(lambda: output.open(self.request))
        for line in self.model.lowered:
            listener.say(line)
        began = time.monotonic()
        with lock(output):
            listener.begin(f"{self.request['command']} {self.options.model}")
            self._make_missing(make, listener)
            wait_for_all()
            return on_main(lambda: self._finish(gather, time.monotonic() - began))

    def _make_missing(self, make: BlockFn, listener: Listener) -> None:
        """Make the missing blocks of this process's share, each written as soon as it is made."""
        n_rows, shares = len(self.rows), n_processes()
        own = range(rank(), self._n_blocks, shares)
        missing = {self.name(number): number for number in own if not self._path(number).exists()}
        n_done = sum(len(self._part(number)) for number in own if number not in missing.values())
        n_before, began = n_done, time.monotonic()
        last = began
        jobs = ((name, self._part(number)) for name, number in missing.items())
        with closing(self.options.runtime.run_jobs(make, jobs, self.model.folder)) as made:
            for name, block in made:
                number, now = missing[name], time.monotonic()
                # First its count, then the block: a block that is written has its count. Seconds are those since the block
                # before, on whichever machine it was made, so that they add up to the wall time.
                count = {"tokens": block.n_tokens, "seconds": round(now - last, 3), "parts": block.parts}
                self.output.write_json(self._count(number), count)
                self.output.write(self._path(number), block.data)
                last, n_done = now, n_done + len(self._part(number))
                speed = (n_done - n_before) * shares / max(now - began, 1e-9)
                listener.progress(min(n_done * shares, n_rows), n_rows, f"{speed:,.0f} rows/s")

    def _finish(self, gather: Callable[[Sequence[Path]], dict[str, Any]], seconds: float) -> StepReport:
        from outlay.train.api import count_cut

        paths = [self._path(number) for number in range(self._n_blocks)]
        missing = next((path.name for path in paths if not path.exists()), None)
        if missing is not None:
            raise MissingData(f"{missing} is not in {self.output.out}; its process was stopped, run the command again")
        facts = {"n_rows": len(self.rows), "n_processes": n_processes(), **gather(paths)}
        counts = [read_object(self._count(number)) for number in range(self._n_blocks)]
        n_tokens = sum(int(count["tokens"]) for count in counts)
        form = self.model.form
        # A classifier of words has no token to multiply by, and is charged nothing in a run either.
        flops = flops_of(str(self.model.folder), None, form, 0, n_tokens) if self.model.has_encoder else 0
        if self.options.runtime.profile:
            facts["profile"] = profile_of_parts([count["parts"] for count in counts], flops, self.options.precision)
        n_truncated = count_cut(self.model.folder, self.model.sources(self.rows))
        report = StepReport(
            command=self.request["command"],
            out=str(self.output.out),
            facts=facts,
            counts=[*self.notes, *self.model.lowered, *cut_lines(form, len(self.rows), n_truncated=n_truncated)],
            n_tokens_inferred=n_tokens,
            flops=flops,
            # Blocks of an earlier attempt count as well.
            seconds=round(max(seconds, sum(float(count["seconds"]) for count in counts) / n_processes()), 3),
        )
        self.output.finish(report.to_json())
        return report

    @property
    def _n_blocks(self) -> int:
        return -(-len(self.rows) // self.options.block_rows)

    def _part(self, number: int) -> Sequence[TaskRow]:
        return self.rows[number * self.options.block_rows : (number + 1) * self.options.block_rows]

    def _path(self, number: int) -> Path:
        return (self.output.out if self.output.is_folder else self.output.work) / self.name(number)

    def _count(self, number: int) -> Path:
        return self.output.work / f"count-{number:05d}.json"
