"""Forecasts of the wall seconds of a run's steps, by the measured profile of this machine.

For people to plan with: no charge, key or result depends on one. The flops clock is no forecast: it bounds what a step is
charged, not how long it takes, since it counts arithmetic alone, at a speed that was not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from outlay.models.cost_model import Lengths, MachineProfile, ModelProfile, answering_load, starting_load, training_load
from outlay.models.forecast import ANSWERING, lengths_of, profile_of, training_seconds
from outlay.plan.context import TokenCounts, reading_key
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, ComputeStep, Distil, Model, Score, Step, Teach, Train, learner_of, n_carved


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast: ``seconds`` of wall time, neither a bound nor a promise; ``by``: the profile behind them."""

    seconds: float
    by: str


class Forecaster:
    """Forecaster of the steps of one run.

    Methods that count words take no seconds, since the profile knows none of theirs. ``answers``: the lengths in tokens of some
    bought labels, as a model writes them (0 for an encoder).
    """

    def __init__(
        self, quoter: Quoter, profile: MachineProfile | None, answers: Callable[[Buy, Model], Sequence[int]]
    ) -> None:
        self._quoter = quoter
        self._context = quoter.context
        self._profile = profile
        self._answers = answers

    def forecast(self, step: Step) -> Forecast | None:
        """Return the wall seconds of a compute step; ``None`` without a profile measured with the step's threads.

        Raises:
            TypeError: the step buys labels.
        """
        if not isinstance(step, ComputeStep):
            raise TypeError(f"{type(step).__name__} is no compute step")
        profile = self._profile
        if profile is None or profile.threads != step.threads:
            return None
        return Forecast(self._seconds(step, profile), f"the profile of {profile.measured}")

    def _seconds(self, step: ComputeStep, profile: MachineProfile) -> float:
        match step:
            case Train():
                return self._trained(step, profile, self._bought(step, step.labels))
            case Distil():
                rows = self._lengths(step, self._counts(step).pool, 0, step.n_rows)
                return self._trained(step, profile, rows)
            case Teach():
                reader = self._reader(step)
                if self._decodes_labels(step):
                    reader = replace(reader, n_choices=1)
                pool = self._lengths(step, self._counts(step.teacher).pool, step.start, step.stop)
                load = answering_load(reader, pool, step.settings, keep=step.target == "tokens")
                # The model stays loaded from block to block.
                load += replace(starting_load(reader, pool), models=int(step.start == 0))
                load = replace(load, loaded=load.loaded * load.models)
                return profile.seconds(load, step.teacher.settings.precision)
            case Score():
                learner = step.model
                if not learner.settings.chosen.reads_vectors:
                    return 0.0
                reader = self._reader(step)
                counts = self._counts(learner).test
                test = self._lengths(step, counts, 0, len(counts) - 1)
                load = answering_load(reader, test, ANSWERING) + starting_load(reader, test)
                return profile.seconds(load, learner.settings.precision)

    def _trained(self, step: Train | Distil, profile: MachineProfile, rows: Lengths) -> float:
        reader, settings = self._reader(step), step.settings
        if not settings.chosen.reads_vectors:
            return 0.0
        if settings.chosen.head == "probe" and settings.chosen.reads_vectors:
            return self._probed(step, profile, rows)
        more = None
        if isinstance(step, Distil) and step.gold and step.target == "tokens":
            # A gold answer is read in a second pass of the same steps.
            gold = training_load(reader, self._bought(step, step.gold), settings)
            more = replace(gold, steps=0, updated=0)
        return training_seconds(profile, reader, rows, self._dev(step), settings, more)

    def _probed(self, step: Train | Distil, profile: MachineProfile, rows: Lengths) -> float:
        """Return the seconds of a training that begins with a probe: encoding, then its epochs; the regression is left out."""
        reader, settings, dev = self._reader(step), step.settings, self._dev(step)
        encoding = answering_load(reader, rows, ANSWERING) + starting_load(reader, rows)
        seconds = profile.seconds(encoding, "fp32")
        if settings.chosen.trains == "none":
            return seconds + (0.0 if dev is None else profile.seconds(answering_load(reader, dev, ANSWERING), "fp32"))
        evaluated = dev if settings.method == "probe_then_tune" else None
        return seconds + training_seconds(profile, reader, rows, evaluated, settings)

    def _counts(self, step: Train | Distil) -> TokenCounts:
        return self._context.tokens[reading_key(step.model.ref, step.reading)]

    def _dev(self, step: Train | Distil) -> Lengths | None:
        if step.dev is None:
            return None
        counts = self._counts(step)
        split = counts.train if step.dev.is_of_train else counts.dev
        return self._lengths(step, split, 0, step.dev.n)

    def _reader(self, step: ComputeStep) -> ModelProfile:
        learner = learner_of(step)
        target = step.target if isinstance(step, Teach) else learner.target if isinstance(learner, Distil) else None
        shape = self._context.shapes[learner.model.ref]
        return profile_of(shape, learner.encoding.form, chooses=target == "classes")

    def _decodes_labels(self, step: Teach) -> bool:
        """Return whether a generative teacher takes the likeliest path through the labels."""
        settings, is_choice = step.settings, step.teacher.encoding.form.kind == "classification"
        is_plain = settings.beams == 1 and not settings.sample and settings.answers_from == "labels"
        return is_choice and is_plain and step.target in ("tokens", "text")

    def _bought(self, step: Train | Distil, labels: Sequence[Buy]) -> Lengths:
        """Return the lengths of the bought rows that are trained on; dev is carved out of the first purchase."""
        counts, n_left_out = self._counts(step).train, n_carved(step.dev)
        sources: list[int] = []
        answers: list[int] = []
        for each in labels:
            rows = _lengths(counts, each.start + n_left_out, each.stop, self._answers(each, step.model))
            sources, answers, n_left_out = [*sources, *rows.sources], [*answers, *rows.answers], 0
        return Lengths(sources, answers)

    def _lengths(self, step: ComputeStep, counts: Sequence[int], start: int, stop: int) -> Lengths:
        """Return the lengths of rows; the first labels behind the step stand for all answers."""
        learner = learner_of(step)
        labels = learner.labels if isinstance(learner, Train) else learner.targets[0].teacher.labels
        return _lengths(counts, start, stop, self._answers(labels[0], learner.model))


def _lengths(counts: Sequence[int], start: int, stop: int, answers: Sequence[int]) -> Lengths:
    """Return the lengths of rows ``start:stop`` from running sums; the given answers stand for all."""
    sources = [counts[row + 1] - counts[row] for row in range(start, stop)]
    return lengths_of(sources, list(answers))
