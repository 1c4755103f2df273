"""`outlay labels`: try a language model, verify what was bought, look at what is on order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, PricesOption, StoreOption, fail, open_store, say_notes
from outlay.cli.run_options import DataOption, TaskArgument
from outlay.cli.seller_options import (
    ExamplesOption,
    KeyOption,
    PriceOption,
    SellerOptions,
    SellersOption,
    UrlOption,
    WayOption,
)
from outlay.cli.terminal import console, echo, print_json

if TYPE_CHECKING:
    from outlay.engine.label_trial import Trial, TrialResult, TrialRows
    from outlay.engine.open_orders import OpenOrder
    from outlay.labels.purchases import PurchaseLog
    from outlay.money.ledger import Ledger
    from outlay.plan.request import SellerSpec
    from outlay.storage.store import Store
    from outlay.tasks.task import Task

labels_app = typer.Typer(no_args_is_help=True)

Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="DIR", help="Results folders. (default: all that the store has)")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@labels_app.command("try")
def try_models(
    task: TaskArgument,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--llm", metavar="MODEL", help="Model to try; several times: beside each other. (default: the task's)"
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows to ask about.")] = 50,
    split: Annotated[str, typer.Option("--split", help="dev or test: whose rows, of those with a gold label.")] = "dev",
    budget: Annotated[str, typer.Option("--budget", help="Dollars that all answers cost at most.")] = "1.00",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the rows, and of the examples.")] = 0,
    llm_url: UrlOption = None,
    llm_key_env: KeyOption = None,
    llm_examples: ExamplesOption = None,
    llm_way: WayOption = None,
    llm_price: PriceOption = None,
    sellers: SellersOption = None,
    prices: PricesOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Ask language models about rows with a gold label: score, agreement, calibration, dollars per label and per correct one."""
    from outlay.cli.trial_screen import print_trials, to_json
    from outlay.engine.label_trial import Trial, TrialRows
    from outlay.engine.sellers import Place
    from outlay.money.amounts import PriceBook
    from outlay.tasks.loading import load_data
    from outlay.tasks.task import load_task

    found = load_task(task)
    options = SellerOptions(None, llm_url, llm_key_env, llm_examples, llm_way, llm_price, sellers)
    specs = _models(found, options, models or [])
    loaded = load_data(found, data)
    drawn = TrialRows.of(found, loaded, split, rows, seed)
    book, kept = PriceBook.load(prices or []), open_store(store)
    place = Place(kept.root / "asked", kept.root / "orders")
    trials = [Trial.of(spec, drawn, book, place) for spec in specs]
    say_notes(loaded.notes, quiet=quiet or as_json)
    results = _run(trials, drawn, budget, quiet=quiet or as_json)
    if as_json:
        print_json(to_json(drawn, results))
    else:
        print_trials(drawn, results)
    if not any(each.n_labels for each in results):
        why = next(
            (reason for each in results for reason in each.refused), "the budget pays for no answer; raise --budget"
        )
        fail(f"no row got a label: {why}")


def _models(task: Task, options: SellerOptions, models: list[str]) -> list[SellerSpec]:
    """Return the models to try, each with the task's keys and the options in their place."""
    from outlay.engine.seller_options import llm_of
    from outlay.errors import UsageError
    from outlay.text.legible import repeats

    if twice := repeats(models):
        raise UsageError(f"--llm {twice[0]} is given twice; name each model once")
    known, given = {**task.sellers, **options.named()}, options.model_options()
    named: list[dict[str, Any]] = [{"model": model} for model in models] or [{}]
    return [llm_of(known, {**given, **each}) for each in named]


def _run(trials: list[Trial], drawn: TrialRows, budget: str, *, quiet: bool) -> list[TrialResult]:
    """Run the trials one after the other; each may cost its part of what is left."""
    from outlay.labels.allowance import Allowance
    from outlay.money.amounts import parse_budget

    results: list[TrialResult] = []
    left = Allowance.of_micros(parse_budget(budget)).left
    with console(err=True, quiet=quiet).status("") as status:
        for i, trial in enumerate(trials):

            def tell(n_rows: int, who: str = trial.who) -> None:
                status.update(f"{who}: {n_rows:,} of {len(drawn.rows):,} rows")

            tell(0)
            results.append(trial.run(Allowance(left / (len(trials) - i)), tell))
            left = max(left - results[-1].usd, left * 0)
    return results


@labels_app.command("verify")
def verify(folders: Folders = None, store: StoreOption = None, as_json: Json = False) -> None:
    """Work out every bill again, from the bytes that came and the prices of their orders; exit 1 where one differs."""
    from outlay.engine.label_audit import Audit, audit_ledger, audit_log

    audit = Audit()
    for opened in _opened(folders or [], store):
        series: set[str] = set()
        if opened.ledger is not None:
            series = audit_ledger(opened.ledger, opened.store, opened.log, audit)
        audit_log(opened.log, opened.store.root / "asked", audit, opened.payers, series)
    if as_json:
        print_json(
            {
                "ok": audit.is_ok,
                "n_orders": audit.n_orders,
                "n_rows": audit.n_rows,
                "usd": float(audit.usd),
                "n_entries": audit.n_entries,
                "differences": audit.differences,
                "notes": audit.notes,
            }
        )
    else:
        for line in audit.lines():
            echo(line, err=line.startswith("DIFFERS"))
    if not audit.is_ok:
        raise typer.Exit(1)


@labels_app.command("status")
def status(folders: Folders = None, store: StoreOption = None, as_json: Json = False) -> None:
    """Print the labels on order: what is in, what is missing, and where people find their files."""
    from outlay.engine.open_orders import open_orders

    found = [
        order
        for opened in _opened(folders or [], store)
        for order in open_orders(opened.log, opened.store.root / "asked", opened.payers)
    ]
    if as_json:
        print_json([_document(order) for order in found])
        return
    for order in found:
        echo("\n".join(order.lines()))
    if not found:
        echo("nothing is on order")


def _document(order: OpenOrder) -> dict[str, Any]:
    state = order.state
    return {
        "order": order.order,
        "who": order.who,
        "run": order.run,
        "n_rows": order.n_rows,
        "n_in": order.n_in,
        "folder": None if order.folder is None else str(order.folder),
        "n_labels": None if state is None else state.n_labels,
        "n_refused": None if state is None else state.n_refused,
        "progress": [] if state is None else list(state.progress),
        "waits_for": None if state is None else state.waits_for,
        "batches": dict(order.batches),
    }


@dataclass(frozen=True)
class _Opened:
    """A store with its purchases, and a ledger with the names that its runs pay under; all of the store without a ledger."""

    store: Store
    log: PurchaseLog
    ledger: Ledger | None = None
    payers: tuple[str, ...] | None = None


def _opened(folders: list[Path], location: str | None) -> list[_Opened]:
    """Open results folders, or the store where none is named.

    Raises:
        MissingData: a folder holds no results.
    """
    from outlay.labels.purchases import PurchaseLog
    from outlay.study.runner import reopen_study

    if not folders:
        kept = open_store(location)
        return [_Opened(kept, PurchaseLog(kept.root / "bought"))]
    found = []
    for folder in folders:
        runner = reopen_study(folder, None if location is None else open_store(location))
        runs = runner.ledger.run_ids() if runner.ledger.is_begun else []
        payers = tuple(runner.results.payer(run) for run in runs)
        found.append(_Opened(runner.store, runner.results.book, runner.ledger if runs else None, payers))
    return found
