"""Public Python API, the functions of ``import outlay``. ``docs/python.md`` has an example of each function.

Nothing is printed. A request that cannot work is refused with an error of `outlay.errors`, before money is spent; the same call
with the same folder goes on where an earlier one was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from outlay.export.hub import PushRequest, push
from outlay.storage.paths import expand_path
from outlay.study.grid import find_study, load_study
from outlay.study.handover import hand_over
from outlay.study.index import StudyIndex
from outlay.study.prepare import check_study, prepare_study, refuse_several_processes, study_command
from outlay.study.progress import OnProgress, ProgressReports
from outlay.study.request import (
    AnyPath,
    Dollars,
    Models,
    RunOptions,
    Setup,
    plain_price,
    prepare_runs,
    request,
    requests,
    workplace,
)
from outlay.study.results import DryRun, RunResult, StudyResult
from outlay.study.runner import Session
from outlay.tasks.new_task import NewTaskOptions, SplitOptions, new_task
from outlay.tasks.task_files import InitResult, check_new_folder, write_task
from outlay.tasks.to_label import ToLabel

# --- a task ----------------------------------------------------------------------------------------------------------


def init(
    files: AnyPath | Sequence[AnyPath],
    *,
    out: AnyPath | None = None,
    name: str | None = None,
    text: str | Sequence[str] = (),
    label: str | None = None,
    kind: str | None = None,
    splits: SplitOptions | None = None,
    label_price: Dollars | None = None,
    labeller: str | None = None,
    to_label: ToLabel | None = None,
) -> InitResult:
    """Make a task of files as people have them: columns are guessed, repeats left out, test and dev set aside.

    Args:
        files: labelled rows (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, or a folder ``LABEL/*.txt``); then files of texts.
        out: folder of the task, new or empty; ``None`` = its name.
        name: of the task; ``None`` = that of the first file.
        text: column of the text, or two of them; empty = guessed.
        label: column of the label; ``None`` = guessed.
        kind: ``classification``, ``entities`` or ``generation``; ``None`` = guessed.
        splits: sizes of test and dev, groups, seed.
        label_price: dollars that one more label costs; ``None`` = none can be bought.
        labeller: who labels, for the price list; ``None`` = people.
        to_label: the labels to be bought, where rows have none; ``None`` = rows have labels.

    Returns:
        The task file, all files, and a sentence for each guess.

    Raises:
        OutlayError: files or columns that make no task, or a folder that holds something.
    """
    price = plain_price(label_price)
    paths = [expand_path(path) for path in ([files] if isinstance(files, str | Path) else files)]
    texts = (text,) if isinstance(text, str) else tuple(text)
    if out is not None:
        check_new_folder(expand_path(out))
    if to_label is not None:
        to_label = replace(to_label, usd_per_label=price)
    found = new_task(paths, NewTaskOptions(name, texts, label, kind, splits or SplitOptions(), to_label))
    folder = expand_path(found.name if out is None else out)
    return write_task(found, folder, usd_per_label=price, labeller=labeller)


# --- runs ------------------------------------------------------------------------------------------------------------


def run(
    task: AnyPath,
    budget: Dollars,
    *,
    out: AnyPath,
    strategy: str = "distill",
    n_initial: int | None = None,
    seed: int = 0,
    models: Models | None = None,
    options: RunOptions | None = None,
    setup: Setup | None = None,
    progress: OnProgress | None = None,
) -> RunResult:
    """Spend a budget on one model by one strategy: buy labels, train, score.

    Args:
        task: a shipped task, or the path of a ``task.yaml``.
        budget: dollars in total.
        out: the results folder; the same call goes on there.
        strategy: ``annotate``, ``distill``, ``self_distill``, ``general_distill``, ``llm_annotate`` or ``mix``.
        n_initial: labels of the teacher; ``None`` = a rule chooses them.
        seed: of order and initialisation.
        models: teacher and student.
        options: further options of the request.
        setup: data, store, prices and limits.
        progress: called with each report of progress.

    Returns:
        The score with its receipt, and the results of its ``rivals``. ``status`` and ``reason`` tell of a run that failed or
        cannot be filled.

    Raises:
        OutlayError: a request that is known to fail, before money is spent.
    """
    options = options or RunOptions()
    asked = request(task, budget, strategy, n_initial, seed, models or Models(), options)
    session = prepare_runs([asked], "run", out, setup or Setup(), rivals=options.rivals)
    own, *rivals = _bring_about(session, progress)
    return replace(own, rivals=tuple(rivals))


def compare(
    task: AnyPath,
    budgets: Dollars | Sequence[Dollars],
    *,
    out: AnyPath,
    strategies: Sequence[str] = ("annotate", "distill", "self_distill"),
    n_initial: int | None = None,
    seeds: int | Sequence[int] = 1,
    models: Models | None = None,
    options: RunOptions | None = None,
    setup: Setup | None = None,
    progress: OnProgress | None = None,
) -> StudyResult:
    """Run every strategy at the same budgets and seeds.

    Args:
        task: as in `run`.
        budgets: dollars in total, one amount or several.
        out: the results folder; the same call, or one that asks for more, goes on there.
        strategies: names of strategies.
        n_initial: as in `run`.
        seeds: how many, from 0 on; or the seeds themselves.
        models: teachers and students.
        options: further options of every request.
        setup: data, store, prices and limits.
        progress: called with each report of progress.

    Returns:
        The results, seed by seed, then those of their rivals.

    Raises:
        OutlayError: a run that is known to fail, before money is spent.
    """
    models, options = models or Models(), options or RunOptions()
    asked = requests(task, budgets, strategies, n_initial, seeds, models, options)
    return _result(prepare_runs(asked, "compare", out, setup or Setup(), rivals=options.rivals), progress)


def dry_run(
    task: AnyPath,
    budgets: Dollars | Sequence[Dollars],
    *,
    out: AnyPath,
    strategies: str | Sequence[str] = ("annotate", "distill", "self_distill"),
    n_initial: int | None = None,
    seeds: int | Sequence[int] = 1,
    models: Models | None = None,
    options: RunOptions | None = None,
    setup: Setup | None = None,
) -> DryRun:
    """Plan the runs that `compare` would make, or `run` with one budget and one strategy: nothing is bought, no folder is made.

    Args:
        task: as in `run`.
        budgets: as in `compare`.
        out: the results folder; what it holds is done.
        strategies: as in `compare`.
        n_initial: as in `run`.
        seeds: as in `compare`.
        models: as in `compare`.
        options: as in `compare`.
        setup: as in `compare`.

    Raises:
        OutlayError: a run that is known to fail.
    """
    models, options = models or Models(), options or RunOptions()
    asked = requests(task, budgets, strategies, n_initial, seeds, models, options)
    return DryRun(prepare_runs(asked, "compare", out, setup or Setup(), rivals=options.rivals).plan)


def study(
    study: AnyPath,
    *,
    out: AnyPath,
    tasks: Sequence[AnyPath] = (),
    scale: str = "cpu",
    seeds: int | None = None,
    precision: str | None = None,
    known: AnyPath | Sequence[AnyPath] = (),
    rivals: bool = True,
    setup: Setup | None = None,
    progress: OnProgress | None = None,
) -> StudyResult:
    """Run a grid of points from a study file, each distinct step once.

    Args:
        study: a shipped study, or the path of a study file.
        out: the results folder; the same call goes on there.
        tasks: tasks of the study, or paths of task files; empty = those of the study.
        scale: one of the study's scales.
        seeds: how many, instead of the study's.
        precision: ``auto``, ``bf16`` or ``fp32``, instead of the study's.
        known: files of finished points (``points.json``), each with its ``study.json`` beside it; their runs count as done.
        rivals: False to leave out the rivals that the study has.
        setup: data, store, prices and limits.
        progress: called with each report of progress.

    Returns:
        The results in the order of the grid, then those of their rivals; of points that cannot be filled, the reason.

    Raises:
        OutlayError: a study, scale or task that is not there, a grid that cannot be, or no point that can be filled.
    """
    refuse_several_processes()
    setup = setup or Setup()
    place = workplace(out, setup)
    named = tuple(map(str, [tasks] if isinstance(tasks, str | Path) else tasks))
    file = load_study(find_study(str(study)))
    unfolded = file.at(scale, named, n_seeds=seeds, precision=precision, price=place.prices.label)
    given = {"--task": ",".join(named) or None, "--scale": scale, "--seeds": seeds, "--precision": precision}
    prices = [expand_path(path) for path in setup.prices]
    files = [expand_path(path) for path in ([known] if isinstance(known, str | Path) else known)]
    further: dict[str, object] = {"--no-rivals": None if rivals else True, "--data": place.data_root}
    further |= {"--max-student-mb": setup.max_student_mb, "--max-ms": setup.max_ms}
    command = study_command(str(study), {**given, **further}, prices, place.machines, files)
    session = prepare_study(unfolded, place, command, known=files, rivals=rivals)
    check_study(session)
    return _result(session, progress)


def _bring_about(session: Session, progress: OnProgress | None) -> list[RunResult]:
    listener = ProgressReports(progress)
    for line in (*session.builder.notes, *session.remarks) if progress is not None else ():
        listener.say(line)
    points, place = session.run(listener), session.place
    hand_over(session)
    cells = StudyIndex.read(place.folder).cells
    return [
        RunResult(place.folder, planned.run_id, point, place.store, cell.known)
        for planned, point, cell in zip(session.plan.points, points, cells, strict=True)
    ]


def _result(session: Session, progress: OnProgress | None) -> StudyResult:
    return StudyResult(session.place.folder, tuple(_bring_about(session, progress)), session.place.store)


def push_model(
    model: AnyPath,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Push the model that a run or a comparison handed over to a Hugging Face hub, with its card, in one commit.

    Args:
        model: a folder that `run` or `compare` wrote, or the ``model`` in it.
        repo: OWNER/NAME, or NAME for the account of the token that `huggingface_hub` finds (``HF_TOKEN``, or a login).
        private: False to let all read it, with the prices in its card; True refuses a repository that is public.
        revision: a branch, new or there; ``None`` = the main one.
        message: of the commit; ``None`` = which model it is.
        endpoint: URL of the hub; ``None`` = ``HF_ENDPOINT``, or https://huggingface.co.

    Returns:
        The URL of its page.

    Raises:
        UsageError: no token, offline, or a repository that is public, holds another model, or has no such name.
        UnknownModel: there is no model with a card.
        HubError: the hub cannot be reached, or refuses.
    """
    return push(PushRequest(expand_path(model), repo, private, revision, message, endpoint)).url
