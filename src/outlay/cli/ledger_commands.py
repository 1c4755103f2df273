"""`outlay ledger`, `outlay store`: receipts, kept artifacts."""

from __future__ import annotations

from typing import Annotated

import typer

from outlay.cli.common import (
    Json,
    ResultsFolder,
    StoreOption,
    ledger_path,
    one_run,
    open_store,
)
from outlay.cli.terminal import echo, print_json

ledger_app = typer.Typer(no_args_is_help=True)
store_app = typer.Typer(no_args_is_help=True)

RunOption = Annotated[str | None, typer.Option("--run", help="One run, by the beginning of its id.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run, by the beginning of its id.")]


@ledger_app.command("show")
def ledger_show(folder: ResultsFolder, run: RunOption = None, as_json: Json = False) -> None:
    """Print the receipt of every run: item, quantity, unit price, amount, what is left."""
    import json

    from outlay.money.ledger import Ledger
    from outlay.report.receipt import receipt, render_text, to_json

    ledger = Ledger(ledger_path(folder))
    receipts = [receipt(ledger, run_id) for run_id in one_run(ledger.run_ids(), run, folder)]
    if as_json:
        print_json([json.loads(to_json(one)) for one in receipts])
    else:
        echo("\n".join(render_text(one) for one in receipts), nl=False)


@ledger_app.command("verify")
def ledger_verify(folder: ResultsFolder, as_json: Json = False) -> None:
    """Recompute every hash and sum, and check every run's anchor; exit 1 and name the first bad row otherwise."""
    import json

    from outlay.errors import LedgerDamaged
    from outlay.money.ledger import Anchor, Ledger

    path = ledger_path(folder)
    anchors = []
    for manifest in sorted(path.parent.glob("runs/*/manifest.json")):
        try:
            anchor = json.loads(manifest.read_text(encoding="utf-8"))["anchor"]
            anchors.append(Anchor(str(anchor["head"]), int(anchor["count"])))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerDamaged(f"{manifest} holds no anchor; it was changed after the run wrote it") from error
    found = Ledger(path).verify(anchors)
    if as_json:
        print_json({"ok": found.ok, "n_entries": found.n_entries, "first_bad": found.first_bad, "reason": found.reason})
    elif found.ok:
        echo(f"{path}: {found.n_entries} entries, chain, sums and {len(anchors)} run anchors agree")
    else:
        where = "" if found.first_bad is None else f"entry {found.first_bad}: "
        echo(f"{path}: DAMAGED, {where}{found.reason}", err=True)
    if not found.ok:
        raise typer.Exit(1)


@ledger_app.command("topup")
def ledger_topup(
    folder: ResultsFolder,
    run: RunArgument,
    amount: Annotated[str, typer.Argument(help="Dollars to add.")],
    as_json: Json = False,
) -> None:
    """Add money to a run, for instance after work was lost."""
    from outlay.money.amounts import format_usd, parse_budget
    from outlay.money.ledger import Ledger

    ledger = Ledger(ledger_path(folder))
    run_id = one_run(ledger.run_ids(), run, folder)[0]
    micros = parse_budget(amount)
    ledger.top_up(run_id, micros, note="by the user")
    if as_json:
        print_json(
            {"run": run_id, "added_micros": micros, "left_micros": ledger.balance(run_id).available_charge_micros}
        )
        return
    echo(f"run {run_id}: {format_usd(micros)} added, {format_usd(ledger.balance(run_id).available_charge_micros)} left")


@ledger_app.command("cancel")
def ledger_cancel(folder: ResultsFolder, run: RunArgument, store: StoreOption = None, as_json: Json = False) -> None:
    """End a run for good: its holds are released and it can spend nothing more. What it bought is kept."""
    from outlay.money.ledger import Ledger
    from outlay.study.runner import reopen_study

    path = ledger_path(folder)
    run_id = one_run(Ledger(path).run_ids(), run, folder)[0]
    runner = reopen_study(path.parent, None if store is None else open_store(store))
    runner.cancel(run_id)
    if as_json:
        print_json({"run": run_id, "cancelled": True, "cash_micros": runner.ledger.balance(run_id).total_cash_micros})
        return
    echo(f"run {run_id} is cancelled; what it bought is kept")


@store_app.command("show")
def store_show(store: StoreOption = None, as_json: Json = False) -> None:
    """List what is kept on this machine: kind, size, what it is."""
    from outlay.storage.files import tree_bytes
    from outlay.storage.locations import is_url

    kept = open_store(store)
    artifacts = kept.list()
    if as_json:
        print_json(
            {
                "location": kept.location,
                "root": str(kept.root),
                "bytes": kept.disk_bytes(),
                "artifacts": [
                    {
                        "key": a.key,
                        "kind": a.kind,
                        "digest": a.digest,
                        "bytes": tree_bytes(a.path),
                        "what": a.meta.get("what"),
                    }
                    for a in artifacts
                ],
            }
        )
        return
    for artifact in artifacts:
        echo(
            f"{artifact.key[:12]}  {artifact.kind:8}  {tree_bytes(artifact.path) / 1e6:8.2f} MB  {artifact.meta.get('what', '')}"
        )
    echo(f"{len(artifacts)} artifacts, {kept.disk_bytes() / 1e6:.1f} MB in {kept.root}")
    if is_url(kept.location):
        echo(f"this is the local copy of {kept.location}, which may keep more")


@store_app.command("gc")
def store_gc(
    store: StoreOption = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Keep at most this much, such as 5G.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", help="Remove what was not used for this many days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove artifacts from this machine, least recently used first; bought labels are never removed, nor what a URL keeps."""
    from outlay.errors import UsageError
    from outlay.storage.locations import parse_bytes

    if max_size is None and older_than is None:
        raise UsageError("nothing to remove: give --max-size or --older-than")
    report = open_store(store).gc(
        keep=lambda artifact: artifact.kind == "buy",
        max_bytes=None if max_size is None else parse_bytes(max_size),
        older_than_seconds=None if older_than is None else older_than * 86400,
        dry_run=dry_run,
    )
    if as_json:
        print_json({"removed": [a.key for a in report.removed], "freed_bytes": report.freed_bytes, "dry_run": dry_run})
        return
    verb = "would remove" if dry_run else "removed"
    echo(f"{verb} {len(report.removed)} artifacts, {report.freed_bytes / 1e6:.1f} MB")
