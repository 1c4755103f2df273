"""Makes the artifact of each compute step: reads its inputs' artifacts, trains or predicts, hands back files.

No money here: the step's gauge is handed in, what the step used goes back to `outlay.run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.metrics import main_score, score
from outlay.prepare import Prepared
from outlay.recipe import Buy, Dev, Distil, Encoding, Model, Score, Step, Teach, Train
from outlay.store import Artifact

if TYPE_CHECKING:
    from outlay.train.loop import Gauge, OnProgress
    from outlay.train.steps import DevTexts

LABELS_FILE = "labels.jsonl"
TARGETS_FILE = "targets.safetensors"
PREDICTIONS_FILE = "predictions.json"
SCORES_FILE = "scores.json"
TRAINING_FILE = "training.json"

Files = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a step: files by name, and what it used (deterministic within one environment)."""

    files: Files
    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and under whose eyes a step is made: a scratch folder that outlives a kill, the gauge, a listener."""

    folder: Path
    gauge: Gauge
    on_progress: OnProgress | None = None
    checkpoint_seconds: float = 20.0


class Workshop:
    """Makes compute steps of one prepared run."""

    def __init__(self, prepared: Prepared, artifact_of: Callable[[Step], Artifact]) -> None:
        self._prepared = prepared
        self._artifact_of = artifact_of

    def make(self, step: Step, bench: Bench) -> Made:
        """Do the work of ``step`` on the artifacts of its inputs.

        Raises:
            TrainingError: the training cannot go on.
        """
        from outlay.train.steps import use_threads

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
        lines = self._file(buy, LABELS_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["label"] for line in lines]

    def _train(self, step: Train, bench: Bench) -> Made:
        from outlay.train.steps import finetune

        labels = self.read_labels(step.labels)
        first = step.dev.n if step.dev is not None and step.dev.how == "carved" else 0
        classes = [step.encoding.labels.index(label) for label in labels[first:]]
        rows = self._prepared.train[first : len(labels)]
        out = _fresh(bench.folder / "model")
        progress = finetune(
            _spec(step.model, step.encoding.labels, step.settings.seed),
            self._prepared.texts(rows),
            classes,
            step.settings,
            max_tokens=step.encoding.max_tokens,
            dev=self._dev(step.dev, step.encoding),
            out=out,
            watch=_watch(bench),
        )
        return _trained(out, progress)

    def _distil(self, step: Distil, bench: Bench) -> Made:
        from outlay.train.steps import distil
        from outlay.train.targets import SparseTargets

        blocks = [SparseTargets.from_bytes(self._file(block, TARGETS_FILE).read_bytes()) for block in step.targets]
        # Rows carved out for dev stay in the pool's order, so that its blocks are the same for every run, but are not trained on.
        carved = self._prepared.train[: step.dev.n] if step.dev is not None and step.dev.how == "carved" else []
        held_out = {row.text for row in carved}
        pool = self._prepared.pool[: step.n_rows]
        kept = [i for i, row in enumerate(pool) if row.text not in held_out]
        out = _fresh(bench.folder / "model")
        progress = distil(
            _spec(step.model, step.encoding.labels, step.settings.seed),
            self._prepared.texts([pool[i] for i in kept]),
            SparseTargets.concatenate(blocks).select(kept),
            step.settings,
            temperature=step.settings.temperature,
            max_tokens=step.encoding.max_tokens,
            dev=self._dev(step.dev, step.encoding),
            out=out,
            watch=_watch(bench),
        )
        return _trained(out, progress)

    def _teach(self, step: Teach, bench: Bench) -> Made:
        from outlay.train.steps import teach

        rows = self._prepared.pool[step.start : step.stop]
        counter = _Counter(bench.gauge)
        targets = teach(
            self._artifact_of(step.teacher).path,
            self._prepared.texts(rows),
            max_tokens=step.teacher.encoding.max_tokens,
            precision=step.teacher.settings.precision,
            gauge=counter,
        )
        return Made({TARGETS_FILE: targets.to_bytes()}, _usage(0, counter.n_tokens))

    def _score(self, step: Score, bench: Bench) -> Made:
        from outlay.train.steps import predict

        counter = _Counter(bench.gauge)
        predictions, _ = predict(
            self._artifact_of(step.model).path,
            self._prepared.texts(self._prepared.test),
            max_tokens=step.model.encoding.max_tokens,
            precision=step.model.settings.precision,
            gauge=counter,
        )
        encoding = step.model.encoding
        golds = [example.label or "" for example in self._prepared.test]
        document = {
            "rows": [example.id for example in self._prepared.test],
            "predictions": predictions,
            "golds": golds,
            "metric": encoding.metric,
            "labels": list(encoding.labels),
        }
        readings = score(encoding.metric, predictions, golds, encoding.labels)
        scores = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in readings.items()}
        return Made({PREDICTIONS_FILE: _json(document), SCORES_FILE: _json(scores)}, _usage(0, counter.n_tokens))

    def _dev(self, dev: Dev | None, encoding: Encoding) -> DevTexts | None:
        """Dev rows and their labels, from where `Dev.how` says."""
        from outlay.train.steps import DevTexts

        if dev is None:
            return None
        rows = (self._prepared.train if dev.how == "carved" else self._prepared.dev)[: dev.n]
        golds = [row.label or "" for row in rows] if dev.labels is None else self.read_labels(dev.labels)[: dev.n]
        metric, labels = encoding.metric, encoding.labels

        def dev_score(classes: Any) -> float:
            predictions = [labels[int(c)] for c in classes]
            return score(metric, predictions, golds, labels, n_bootstrap=1)[main_score(metric)].value

        return DevTexts(self._prepared.texts(rows), dev_score)

    def _file(self, step: Step, name: str) -> Path:
        return self._artifact_of(step).path / name


class _Counter:
    """A gauge that also counts the tokens of one inference."""

    def __init__(self, gauge: Gauge) -> None:
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


def label_lines(rows: Sequence[tuple[str, str]]) -> bytes:
    """The bytes of a labels artifact: one JSON object with ``row`` and ``label`` per line."""
    return "".join(json.dumps({"row": row, "label": label}, ensure_ascii=False) + "\n" for row, label in rows).encode()


def _spec(model: Model, labels: tuple[str, ...], seed: int) -> Any:
    from outlay.train.models import ModelSpec

    return ModelSpec(model.ref, model.base, labels, seed)


def _watch(bench: Bench) -> Any:
    from outlay.train.steps import Watch

    return Watch(bench.gauge, bench.folder / "checkpoints", bench.checkpoint_seconds, bench.on_progress)


def _trained(out: Path, progress: Any) -> Made:
    files: Files = {path.name: path for path in sorted(out.iterdir()) if path.is_file()}
    training = {
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "dev": progress.best_score,
        "stopped": progress.stopped,
        "n_parameters": progress.n_parameters,
        "n_truncated": progress.n_truncated,
    }
    files[TRAINING_FILE] = _json(training)
    usage = _usage(progress.n_tokens_trained, progress.n_tokens_inferred)
    extra = {name: training[name] for name in ("dev", "stopped", "n_parameters")}
    return Made(files, usage | extra)


def _usage(n_tokens_trained: int, n_tokens_inferred: int) -> dict[str, Any]:
    return {"n_tokens_trained": n_tokens_trained, "n_tokens_inferred": n_tokens_inferred}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _fresh(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
