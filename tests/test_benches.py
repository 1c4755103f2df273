"""The benches of speed at toy scale: what they compare is the same thing, what they compute is right, and they run through."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils import logging

from bench import (
    common,
    distill_vs_online,
    label_errors,
    latency,
    loop_vs_trainer,
    probe,
    report_study,
    study_workers,
    targets,
)
from bench.common import Clock, Work, interleaved, median, toy_rows
from bench.distill_vs_online import (
    COMPLETE,
    PUBLISHED,
    BatchOrder,
    Cost,
    Equality,
    World,
    answered_by_first_word,
    equality,
    fever_world,
)
from bench.loop_vs_trainer import BEST_FLAGS, Case, accuracy, cases, cut, finetuned, trained
from bench.published_objective import Pair, reference
from outlay.models.loading import load_model
from outlay.storage.store import Store
from outlay.study.runner import read_results
from outlay.train.api import use_threads

pytestmark = pytest.mark.bench

Main = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """The benches silence transformers for good."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    use_threads(1)
    return Work(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def claims(work: Work) -> World:
    return fever_world(SimpleNamespace(toy=True), work)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(work: Work) -> list[Case]:
    return cases(SimpleNamespace(toy=True), work)  # type: ignore[arg-type]


@pytest.fixture
def main(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    def call(bench: ModuleType, *options: str) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / "figures.json"
        words = ["--threads", "1", "--repeats", "1", "--work", str(work.folder), "--json", str(file), *options]
        monkeypatch.setattr(sys, "argv", [str(bench.__file__), *words])
        code = bench.main()
        return code, json.loads(file.read_text()) if file.exists() else {}, capsys.readouterr().out

    return call


def test_the_trainer_of_the_reference_is_the_published_algorithm(claims: World) -> None:
    world = claims.head(33)
    batches = [list(range(at, at + 11)) for at in (0, 11, 22)]
    settings = replace(PUBLISHED, batch_size=11, dropout=0.0)
    losses, _ = distill_vs_online.reference(world, settings, order=BatchOrder([batches]))
    pair = Pair(world.teacher, world.student, [text[0] for text in world.texts], world.form)
    assert losses == pytest.approx(reference(pair, batches, settings.learning_rate), rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_the_teacher_writes_once_per_distinct_input(claims: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = distill_vs_online.TeacherInTheLoop.begin

    def begin(trainer: Any, teacher: Any, *more: Any) -> None:
        plain(trainer, teacher, *more)
        write = trainer.teacher.generate
        trainer.teacher.generate = lambda **batch: (asked.append(len(batch["input_ids"])), write(**batch))[1]

    monkeypatch.setattr(distill_vs_online.TeacherInTheLoop, "begin", begin)
    first, second = ["a fine day", "the plot"], ["a fine day", "bright"]
    world = replace(claims, texts=[(text,) for text in (*first, *second, *first)])
    settings = replace(PUBLISHED, batch_size=2, epochs=2)
    distill_vs_online.reference(world, settings, order=BatchOrder([[[0, 1], [2, 3], [4, 5]]] * 2))
    # The second batch is new by one of its inputs and is written whole, the third is known, and so is the second epoch.
    assert asked == [2, 2]


def test_stored_targets_give_the_losses_of_the_teacher_in_the_loop(claims: World) -> None:
    curves = equality(claims.head(64), epochs=2)
    assert len(curves.outlay) == 4
    assert curves.outlay == pytest.approx(curves.reference, rel=1e-4)
    assert Equality([2.0, 4.0], [2.0, 4.2]).largest_difference == pytest.approx(0.05)


def test_the_teacher_answers_with_labels(claims: World) -> None:
    assert set(claims.head(31).teach(COMPLETE, "fp32").answers) == set(claims.form.labels)


@pytest.mark.parametrize("of", [0, 1], ids=["encoder", "writer"])
def test_contestants_do_the_same_training(both: list[Case], of: int) -> None:
    """One batch per epoch: the order of rows does not matter, and what is left is the loop."""
    case = replace(both[of], rows=cut(both[of].rows, 29, 8))
    settings = replace(case.settings, epochs=4, batch_size=29, dropout=0.0, warmup_fraction=0.0, precision="fp32")
    settings = replace(settings, weight_decay=0.0, learning_rate=1e-3, seed=3)
    begin = load_model(case.spec(3))[0].state_dict()
    ours, theirs = finetuned(case, settings)[0].state_dict(), still(trained, case, settings)
    other = still(trained, case, replace(settings, learning_rate=0.9e-3))
    assert ours.keys() == theirs.keys() == begin.keys()
    way = distance(ours, begin)
    # Where a gradient is rounding, Adam goes either way by a whole step: so not weight by weight.
    assert distance(ours, theirs) < 0.02 * way < 0.05 * way < distance(ours, other)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights."""
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


def still(train: Callable[..., Any], case: Case, settings: Any) -> dict[str, torch.Tensor]:
    """The weights of a `Trainer`'s model without dropout, which it takes from the config."""
    folder = Path(case.ref)
    config = json.loads((folder / "config.json").read_text())
    names = ("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
    (folder / "config.json").write_text(json.dumps({**config, **{name: 0.0 for name in names if name in config}}))
    try:
        state: dict[str, torch.Tensor] = train(case, {"optim": "adamw_torch"}, settings)[0].state_dict()
    finally:
        (folder / "config.json").write_text(json.dumps(config))
    return state


def test_best_flags_group_rows_by_length(both: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    seen: list[Any] = []
    plain = transformers.Trainer._get_train_sampler
    monkeypatch.setattr(transformers.Trainer, "_get_train_sampler", lambda *args: seen.append(plain(*args)) or seen[-1])
    for flags in ({}, BEST_FLAGS):
        trained(replace(both[0], rows=cut(both[0].rows, 7, 3)), flags, replace(both[0].settings, epochs=1))
    assert [type(sampler).__name__ for sampler in seen] == ["RandomSampler", "LengthGroupedSampler"]


@pytest.mark.parametrize("of", [0, 1], ids=["encoder", "writer"])
def test_accuracy_is_that_of_one_row_at_a_time(both: list[Case], of: int) -> None:
    from transformers import AutoTokenizer

    case = replace(both[of], rows=cut(both[of].rows, 96, 23))
    model, _ = finetuned(case, replace(case.settings, learning_rate=3e-3, epochs=6))
    model.eval()
    tokenizer, form, right = AutoTokenizer.from_pretrained(case.ref), case.rows.form, 0
    for text, answer in zip(case.rows.test, case.rows.test_answers, strict=True):
        with torch.no_grad():
            if case.is_encoder:
                said = form.labels[
                    int(model(**tokenizer(*text, return_token_type_ids=True, return_tensors="pt")).logits.argmax())
                ]
            else:
                ids = tokenizer(form.prefix + text[0], return_tensors="pt")["input_ids"]
                said = tokenizer.decode(model.generate(ids, max_new_tokens=8)[0], skip_special_tokens=True).strip()
        right += said == answer
    assert right > 0
    assert accuracy(case, model) == pytest.approx(100 * right / 23)


def test_the_cost_of_fifty_epochs_is_extrapolated_from_steps() -> None:
    cost = Cost(prepare=0.5, first=3.0, later=2.0)
    # 65 rows make three steps: 32.5 to prepare, three first steps, then four epochs of three.
    assert cost.total(65, 32, epochs=5) == pytest.approx(32.5 + 3 * 3.0 + 4 * 3 * 2.0)
    assert Cost.median([Cost(1, 5, 6), Cost(3, 4, 9), Cost(2, 9, 1)]) == Cost(2, 5, 6)


def test_a_clock_may_be_told_of_some_steps_only() -> None:
    clock = Clock()
    clock.marks = [(step, clock.began + at) for step, at in ((2, 7.0), (4, 9.0), (7, 15.0))]
    assert clock.per_step() == pytest.approx(15 / 7)
    assert clock.per_step(2) == pytest.approx(8 / 5)
    assert clock.per_step(1, 5) == pytest.approx(1.0)
    assert clock.seconds == pytest.approx(15.0)
    with pytest.raises(ValueError, match="behind step 7"):
        clock.per_step(7)


def test_lines_are_answered_by_their_first_word() -> None:
    texts = ["add a", "mix b", "add c", "spin d", "add e", "mix f"]
    rows = replace(toy_rows("spans"), train=[(text,) for text in texts], answers=["x", "yy", "xxx", "z", "xxxx", "y"])
    made = answered_by_first_word(rows, n_words=2, n_lines=2)
    assert made.train == [("add a",), ("mix b",), ("add c",), ("add e",), ("mix f",)]
    assert made.answers == ["xxx", "yy", "xxx", "xxx", "yy"]
    assert made.pool == rows.pool


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def contestant(name: str) -> Callable[[int], float]:
        return lambda turn: (order.append(name), 10.0 * turn + len(order))[1]

    results = interleaved({name: contestant(name) for name in "AB"}, 3)
    assert order == list("ABABAB")
    assert results == {"A": [1.0, 13.0, 25.0], "B": [2.0, 14.0, 26.0]}
    assert median(results["B"]) == 14.0


def test_finished_models_are_taken_over(tmp_path: Path) -> None:
    work, made = Work(tmp_path), []

    def make(folder: Path) -> None:
        folder.mkdir()
        made.append(folder)

    assert work.made("a", (1, "x"), make) == work.made("a", (1, "x"), make)
    assert work.made("a", (2, "x"), make) != work.made("a", (1, "x"), make)
    assert len(made) == 2
    assert toy_rows("spans") == toy_rows("spans") != toy_rows("pairs")


def test_distill_vs_online_runs_through(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    code, figures, out = main(distill_vs_online, "--toy")
    assert code == 0
    costs = figures["speed"]["contestants"]
    online, fast = costs["teacher in the loop"], costs["outlay, as it is set"]
    assert online["total_seconds"] == pytest.approx(
        96 * online["prepare_seconds_per_row"]
        + 3 * (online["first_seconds_per_step"] + 49 * online["later_seconds_per_step"])
    )
    assert fast["ratio"] == pytest.approx(online["total_seconds"] / fast["total_seconds"])
    assert f"{fast['ratio']:.1f}x" in out
    assert [each["positions_per_row"] > 2.5 for each in figures["epoch"].values()] == [False, True, False]
    monkeypatch.setattr(distill_vs_online, "LIMIT", -1.0)
    curves = Equality([1.0], [1.0])
    assert distill_vs_online.report(curves, {"a": Cost(1, 1, 1)}, {}, 3, 3).failures


def test_a_failure_is_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = SimpleNamespace(toy=True, data=None, threads=1, work=None, json=None)
    for failures, code in (((), 0), (("too far",), 1)):
        assert common.run(given, lambda *_, f=failures: common.Report([], {}, f)) == code  # type: ignore[arg-type, misc]
    assert "FAILED: too far" in capsys.readouterr().out


def test_loop_vs_trainer_runs_through(main: Main) -> None:
    code, figures, _ = main(loop_vs_trainer, "--toy")
    assert code == 0
    assert len(figures["races"]) == 2
    for race in figures["races"].values():
        assert list(race) == ["Trainer, published", "Trainer, best flags", "outlay"]
        for name, against in (("Trainer, published", "published"), ("Trainer, best flags", "best flags")):
            assert race["outlay"]["ratios"][against] == pytest.approx(race[name]["seconds"] / race["outlay"]["seconds"])
            assert race[name]["ratios"][against] == 1.0


def test_targets_runs_through(main: Main) -> None:
    code, figures, _ = main(targets, "--toy")
    assert code == 0
    for each in figures["tasks"].values():
        runs = each["contestants"]
        assert runs["outlay, fp32"]["equal_answers"] == runs["generate and logits, fp32"]["equal_answers"] == 1.0
        plain, ours = runs["generate, fp32"], runs["outlay, as it is set"]
        assert plain["ratio"] == pytest.approx(ours["rows_per_second"] / plain["rows_per_second"])
        assert each["targets"]["bytes_per_token"] > 8


def test_probe_runs_through(main: Main) -> None:
    code, figures, out = main(probe, "--toy")
    assert code == 0
    (case,) = figures["cases"].values()
    ours, theirs = case[probe.OURS], case[probe.BY_HAND]
    assert theirs["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert f"{theirs['ratio']:.2f}x" in out
    assert {fit["n_fits"] for fit in (*ours["runs"], *theirs["runs"])} == {51}
    assert case["encoding"]["again"] < case["encoding"]["first"]


def test_label_errors_run_through(main: Main) -> None:
    code, figures, out = main(label_errors, "--toy", "--repeats", "2")
    assert code == 0, out
    ((_, shares),) = figures["shares"].items()
    assert all(len(each) == 2 and 0 <= min(each) <= max(each) <= 1 for each in shares.values())


def test_latency_runs_through_and_times_the_same_answers(main: Main) -> None:
    code, figures, out = main(latency, "--toy", "--repeats", "1")
    assert code == 0, out
    assert set(figures["methods"]) == set(latency.METHODS)
    assert all(min(runs) > 0 for each in figures["methods"].values() for runs in each.values())


def test_a_probe_of_another_loss_is_a_failure() -> None:
    fits = [probe.Fit(1.0, 2.0, 51, 70.0, loss) for loss in (0.5, 0.6)]
    assert probe.report("a", {probe.OURS: fits[:1], probe.BY_HAND: fits[1:]}).failures
    assert not probe.report("a", {probe.OURS: fits[:1], probe.BY_HAND: fits[:1]}).failures


@pytest.mark.parametrize("bench", [distill_vs_online, loop_vs_trainer, targets], ids=lambda bench: bench.__name__)
def test_without_data_a_bench_says_that_it_is_skipped(
    bench: ModuleType, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTLAY_DATA", raising=False)
    code, figures, out = main(bench)
    assert (code, figures) == (0, {})
    assert out.startswith("skipped: no public data sets in $OUTLAY_DATA")
    code, figures, out = main(bench, "--data", str(tmp_path))
    assert (code, figures) == (0, {})
    assert out.startswith("skipped:")
    assert str(tmp_path) in out


def test_report_study_runs_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["report_study.py", "--quick", "--json", str(file)])
    monkeypatch.setattr(report_study, "GOAL_SECONDS", 3600.0)
    monkeypatch.setattr(report_study, "GOAL_SECONDS_ANSWERED", 0.0)
    assert report_study.main() == 1, "one goal of two is missed"
    figures = json.loads(file.read_text())
    assert {name: found["points"] for name, found in figures.items()} == {"large": 72, "answered": 12}
    for found in figures.values():
        assert sum(part["seconds"] for part in found["parts"].values()) == pytest.approx(found["seconds"])
        assert found["bytes"]["page"] > 10_000
    assert figures["answered"]["parts"]["paired tests"]["cpu_seconds"] > 0
    assert "report of 72 points" in capsys.readouterr().out


def test_a_made_up_study_is_read_as_it_was_meant(tmp_path: Path) -> None:
    grid = report_study.Grid(1, 2, 1, 3, 2, 31)
    store = Store(tmp_path / "store")
    (tmp_path / "study").mkdir()
    report_study.make_study(tmp_path / "study", store, grid)
    results = read_results(tmp_path / "study", store)
    assert len(results.points) == grid.n_points == 12
    answered = [results.outputs[point.id].answered for point in results.points if point.is_ok]
    assert all(each is not None and len(each.predictions) == 31 for each in answered)
    for point in results.points:
        parts = results.outputs[point.id].charges_usd
        assert parts is not None
        assert sum(parts.values()) == pytest.approx(point.result.charge_usd)


def test_a_part_within_a_part_is_timed_for_itself() -> None:
    watch = report_study.Watch()
    with watch.part("outer"), watch.part("inner"):
        time.sleep(0.05)
    assert watch.seconds["inner"][0] >= 0.05 > watch.seconds["outer"][0]


def test_study_workers_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(
        sys, "argv", ["study_workers.py", "--quick", "--only", "scheduler", "--points", "8", "--json", str(file)]
    )
    assert study_workers.main() == 0
    found = json.loads(file.read_text())["scheduler"]
    assert found["points"] == 8
    assert 0 < found["distinct_steps"] < found["settled_steps"]
    assert found["ms_per_settled_step"] * found["settled_steps"] == pytest.approx(1e3 * found["seconds"])


@pytest.mark.slow
def test_one_worker_and_two_bring_equal_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study_workers.py", "--quick", "--only", "workers"])
    assert study_workers.main() == 0
    assert "1 of 1 thread" in capsys.readouterr().out
