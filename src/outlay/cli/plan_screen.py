"""Printing of a plan, in place of running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlay.cli.terminal import print_json, table_console

if TYPE_CHECKING:
    from outlay.study.runner import Session


def print_plan(session: Session, store: str | None, *, as_json: bool) -> None:
    """Print the plan of a session, of runs or of a study; ``store``: the store as it was named.

    Raises:
        UsageError: no point can be filled.
    """
    from outlay.study.prepare import check_study

    if as_json:
        print_json(session.plan.to_json())
    else:
        _print_tables(session, store)
    check_study(session)


def _print_tables(session: Session, store: str | None) -> None:
    from outlay.cli.plan_table import render

    by_run, n_workers = session.header.scale is None, session.pool.n_workers if session.pool is not None else 1
    table_console().print(
        render(session.plan, by_run=by_run, calibrate=_calibrate(session, store), n_workers=max(1, n_workers))
    )


def _calibrate(session: Session, store: str | None) -> str:
    """Return the command that measures this machine for the runs of a session."""
    from outlay.cli.run_options import given_words
    from outlay.settings import DEFAULT_THREADS
    from outlay.storage.paths import command_line

    threads = max((point.request.threads for point in session.plan.points), default=DEFAULT_THREADS)
    options = {"--threads": None if threads == DEFAULT_THREADS else threads, "--store": store}
    return command_line("outlay", "machine", "calibrate", *given_words(options))
