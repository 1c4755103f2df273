"""Makes the artifact of each compute step: reads its inputs' artifacts, trains or predicts, hands back files.

No money here: the step's gauge is handed in, what the step used goes back to `outlay.engine.runner`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.engine.prepare import PreparedRun
from outlay.labels.purchases import parse_label_lines
from outlay.metrics import main_score, missing_text, score
from outlay.metrics.degenerate import floor_of
from outlay.plan.context import PlanningContext
from outlay.plan.steps import (
    LABELS_FILE,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TARGETS_FILE,
    TRAINING_FILE,
    Buy,
    Dev,
    Distil,
    Encoding,
    Judge,
    Model,
    Score,
    Step,
    Teach,
    Train,
    n_carved,
)
from outlay.storage.store import Artifact

if TYPE_CHECKING:
    from outlay.metrics.bertscore import BertScore
    from outlay.tasks.example import Example
    from outlay.train.api import DevTexts
    from outlay.train.state import OnProgress, WorkMeter


N_SAMPLED = 512
"""Bought labels whose lengths stand for those of all answers, where seconds are foreseen."""

Files = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What came of a step: files by name, and what it used (deterministic within one environment)."""

    files: Files
    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where and under whose eyes a step is made: a scratch folder that outlives a kill, the gauge, a listener."""

    folder: Path
    gauge: WorkMeter
    on_progress: OnProgress | None = None
    checkpoint_seconds: float = 20.0


class StepRunner:
    """Makes compute steps of one prepared run."""

    def __init__(self, prepared: PreparedRun, artifact_of: Callable[[Step], Artifact]) -> None:
        self._prepared = prepared
        self._artifact_of = artifact_of
        self._answer_lengths: dict[tuple[str, str], list[int]] = {}

    def make(self, step: Step, bench: StepContext) -> StepOutput:
        """Do the work of ``step`` on the artifacts of its inputs.

        Raises:
            TrainingError: the training cannot go on.
        """
        from outlay.train.api import use_threads

        use_threads(self._prepared.request.threads)
        match step:
            case Train():
                return self._train(step, bench)
            case Teach():
                return self._teach(step, bench)
            case Distil():
                return self._distil(step, bench)
            case Score():
                return self._score(step, bench)
        raise TypeError(f"a {type(step).__name__} step is not made here")

    def read_labels(self, buy: Buy) -> list[str]:
        """The labels bought, in the split's seeded order."""
        return parse_label_lines(self._file(buy, LABELS_FILE).read_bytes())

    def answer_lengths(self, labels: Buy, model: Model) -> list[int]:
        """Tokens of some of the labels bought, as ``model`` writes them; 0 for an encoder."""
        at = labels.key, model.ref
        if at not in self._answer_lengths:
            from outlay.train.calibration import answer_lengths

            said = self.read_labels(labels)[:N_SAMPLED]
            self._answer_lengths[at] = answer_lengths(model.ref, model.base, self._prepared.task.form, said)
        return self._answer_lengths[at]

    def _train(self, step: Train, bench: StepContext) -> StepOutput:
        from outlay.train.api import finetune

        labels = [label for buy in step.bought for label in self.read_labels(buy)]
        rows = [row for buy in step.bought for row in self._prepared.train[buy.start : buy.stop]]
        first = n_carved(step.dev)
        out = _fresh(bench.folder / "model")
        progress = finetune(
            _spec(step),
            self._prepared.sources(rows[first:], step.model.ref),
            labels[first:],
            step.settings,
            dev=self._dev(step),
            out=out,
            context=_watch(bench),
        )
        return _trained(out, progress, len(labels) - first, self._dev_floor(step))

    def _distil(self, step: Distil, bench: StepContext) -> StepOutput:
        from outlay.train.api import distil
        from outlay.train.targets.targets import SparseTargets

        blocks = [SparseTargets.open(self._file(block, TARGETS_FILE)) for block in step.targets]
        # Rows carved out for dev stay in the pool's order, so that its blocks are the same for every run, but are not trained on.
        held_out = {row.text for row in self._prepared.train[: n_carved(step.dev)]}
        pool = self._prepared.pool[: step.n_rows]
        kept = [i for i, row in enumerate(pool) if row.text not in held_out]
        out = _fresh(bench.folder / "model")
        progress = distil(
            _spec(step),
            self._prepared.sources([pool[i] for i in kept], step.model.ref),
            SparseTargets.concatenate(blocks).select(kept),
            step.settings,
            gold=None if step.gold is None else self._gold(step.gold, [pool[i] for i in kept]),
            dev=self._dev(step),
            out=out,
            context=_watch(bench),
        )
        return _trained(out, progress, len(kept), self._dev_floor(step))

    def _gold(self, bought: Buy, rows: Sequence[Example]) -> list[str | None]:
        """The bought labels of those pool rows that are train rows too, told by the hash of their text."""
        labels = self.read_labels(bought)
        known = {row.id: label for row, label in zip(self._prepared.train, labels, strict=False)}
        return [known.get(row.id) for row in rows]

    def _teach(self, step: Teach, bench: StepContext) -> StepOutput:
        from outlay.train.api import teach

        rows = self._prepared.pool[step.start : step.stop]
        counter = _Counter(bench.gauge)
        targets = teach(
            self._artifact_of(step.teacher).path,
            self._prepared.sources(rows, step.teacher.model.ref),
            target=step.target,
            settings=step.settings,
            precision=step.teacher.settings.precision,
            gauge=counter,
            vocab_size=step.vocab_size,
        )
        return StepOutput({TARGETS_FILE: targets.to_bytes()}, _usage(0, counter.n_tokens))

    def _score(self, step: Score, bench: StepContext) -> StepOutput:
        from outlay.train.api import predict

        counter = _Counter(bench.gauge)
        test, encoding = self._prepared.test, step.model.encoding
        predictions = predict(
            self._artifact_of(step.model).path,
            self._prepared.sources(test, step.model.model.ref),
            precision=step.model.settings.precision,
            gauge=counter,
        )
        golds, texts = [example.label or "" for example in test], [example.text for example in test]
        alike = _similarities(encoding.judge, predictions, texts)
        document = {
            "rows": [example.id for example in test],
            "sources": texts,
            "predictions": predictions,
            "golds": golds,
            "similarities": alike,
            "metric": encoding.metric,
            "labels": list(encoding.form.labels),
        }
        readings = score(
            encoding.metric, predictions, golds, encoding.form.labels, sources=texts, similarities=alike or None
        )
        scores = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in readings.items()}
        return StepOutput({PREDICTIONS_FILE: _json(document), SCORES_FILE: _json(scores)}, _usage(0, counter.n_tokens))

    def _dev(self, step: Train | Distil) -> DevTexts | None:
        """Dev rows and their labels, from where `Dev.how` says."""
        from outlay.train.api import DevTexts

        dev, encoding = step.dev, step.encoding
        if dev is None:
            return None
        rows, golds = self._dev_rows(dev)
        texts = [row.text for row in rows]

        def dev_score(answers: Sequence[str]) -> float:
            return _main_value(encoding, answers, golds[: len(answers)], texts[: len(answers)])

        return DevTexts(self._prepared.sources(rows, step.model.ref), dev_score)

    def _dev_rows(self, dev: Dev) -> tuple[Sequence[Example], list[str]]:
        rows = (self._prepared.train if dev.how == "carved" else self._prepared.dev)[: dev.n]
        golds = [row.label or "" for row in rows] if dev.labels is None else self.read_labels(dev.labels)[: dev.n]
        return rows, golds

    def _dev_floor(self, step: Train | Distil) -> dict[str, Any]:
        """How many dev rows there were, and what the commonest answer to all of them scores, for a model's usage."""
        if step.dev is None:
            return {}
        golds = self._dev_rows(step.dev)[1]
        floor = floor_of(step.encoding.metric, golds, step.encoding.form.labels)
        return {"n_dev": len(golds), "dev_floor": None if floor is None else asdict(floor)}

    def _file(self, step: Step, name: str) -> Path:
        return self._artifact_of(step).path / name


class _Counter:
    """A gauge that also counts the tokens of one inference."""

    def __init__(self, gauge: WorkMeter) -> None:
        self._gauge = gauge
        self.n_tokens = 0

    def may_train(self, n_tokens: int) -> bool:
        return self._gauge.may_train(n_tokens)

    def trained(self, n_tokens: int) -> None:
        self._gauge.trained(n_tokens)

    def inferred(self, n_tokens: int) -> None:
        self.n_tokens += n_tokens
        self._gauge.inferred(n_tokens)

    def state(self) -> dict[str, Any]:
        return self._gauge.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._gauge.restore(state)


def cut_lines(step: Step, usage: Mapping[str, Any], known: PlanningContext) -> list[str]:
    """What a training could not take in whole, a line each: rows and answers beyond the limits, entities without a place."""
    if not isinstance(step, Train | Distil):
        return []
    form, n_rows = known.form_of(step.model.ref), f"{usage.get('n_rows', 0):,}"
    counts = (
        ("n_truncated", f"of {n_rows} rows were longer than {form.max_source_tokens} tokens and were cut"),
        ("n_answers_cut", f"of {n_rows} answers were longer than {form.max_target_tokens} tokens and were cut"),
        ("n_unaligned", f"entities of {n_rows} rows could not be found in their text and were left out"),
    )
    return [f"{usage[name]:,} {words}" for name, words in counts if usage.get(name)]


_judges: dict[Judge, BertScore] = {}


def _similarities(judge: Judge | None, answers: Sequence[str], sources: Sequence[str]) -> list[float]:
    """BERTScore F1 of each answer and its source, 0 to 1; nothing where the metric needs none. The encoder is loaded once."""
    if judge is None:
        return []
    from outlay.metrics.bertscore import BertScore

    if judge not in _judges:
        _judges.clear()
        _judges[judge] = BertScore(judge.ref, layer=judge.layer, idf=judge.idf)
    return _judges[judge].f1(missing_text(answers), sources)


def _main_value(encoding: Encoding, answers: Sequence[str], golds: Sequence[str], sources: Sequence[str]) -> float:
    """The task's main score, 0 to 100."""
    readings = score(
        encoding.metric,
        answers,
        golds,
        encoding.form.labels,
        sources=sources,
        similarities=_similarities(encoding.judge, answers, sources) or None,
    )
    return readings[main_score(encoding.metric)].value


def _spec(step: Train | Distil) -> Any:
    from outlay.train.api import ModelSpec

    target = step.target if isinstance(step, Distil) else None
    return ModelSpec(step.model.ref, step.model.base, step.encoding.form, step.settings.seed, target)


def _watch(bench: StepContext) -> Any:
    from outlay.train.api import TrainContext

    return TrainContext(bench.gauge, bench.folder / "checkpoints", bench.checkpoint_seconds, bench.on_progress)


def _trained(out: Path, progress: Any, n_rows: int, dev: dict[str, Any]) -> StepOutput:
    files: Files = {path.name: path for path in sorted(out.iterdir()) if path.is_file()}
    training = {
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "dev": progress.best_score,
        "stopped": progress.stopped,
        "n_parameters": progress.n_parameters,
        "n_rows": n_rows,
        "n_truncated": progress.n_truncated,
        "n_answers_cut": progress.n_answers_cut,
        "n_unaligned": progress.n_unaligned,
    }
    files[TRAINING_FILE] = _json(training)
    usage = _usage(progress.n_tokens_trained, progress.n_tokens_inferred)
    extra = {name: value for name, value in training.items() if name not in ("history", "best_epoch")}
    return StepOutput(files, usage | extra | dev)


def _usage(n_tokens_trained: int, n_tokens_inferred: int) -> dict[str, Any]:
    return {"n_tokens_trained": n_tokens_trained, "n_tokens_inferred": n_tokens_inferred}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _fresh(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
