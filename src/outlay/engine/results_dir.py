"""A results folder: its ledger, its purchases and its store, opened once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from outlay.engine.buying import Purchase, PurchaseResult, buy
from outlay.engine.run_dir import RunDir
from outlay.engine.sellers import Place
from outlay.engine.step_meter import lost_seconds
from outlay.engine.step_runner import kept_seconds
from outlay.errors import BudgetExceeded
from outlay.labels.purchases import PurchaseLog
from outlay.money.amounts import PURCHASE_UNITS, Price
from outlay.money.ledger import Hold, Ledger
from outlay.storage.paths import command_line
from outlay.storage.store import Store


@dataclass(frozen=True)
class ResultsDir:
    """A results folder that pays for its runs: its ledger, its purchase log and its store.

    ``here``: price per hour of the machine that really computes, for cash.
    """

    folder: Path
    ledger: Ledger
    book: PurchaseLog
    store: Store
    here: Price
    checkpoint_seconds: float
    place: Place
    """Where sellers keep what is theirs."""

    def files(self, run_id: str) -> RunDir:
        """Return the folder of one run."""
        return RunDir.of(self.folder, run_id)

    def payer(self, run_id: str) -> str:
        """Return the payer: this run in this ledger. The same request in another folder is another payer."""
        return f"{self.ledger.first_hash()[:16]}:{run_id}"

    def unbooked_micros(self, run_id: str) -> int:
        """Return the cash, in micro-dollars, of labels delivered to a run and not booked yet: those of a purchase under way."""
        booked = sum(
            entry.cash_micros
            for entry in self.ledger.entries(run_id)
            if entry.unit in PURCHASE_UNITS and entry.kind in ("settle", "overrun", "lost")
        )
        return max(0, self.book.paid_by(self.payer(run_id)) - booked)

    def buy(self, purchase: Purchase, on_progress: Callable[[int, int, str], None]) -> PurchaseResult:
        """Order the rows of a purchase, and log every label that its seller has ready, see `outlay.engine.buying.buy`."""
        return buy(purchase, self.book, on_progress)

    def end_purchase(self, hold: Hold, why: str) -> None:
        """Release the hold of a purchase for good, and book the cash of its delivered labels as lost."""
        lost = self.unbooked_micros(hold.run_id)
        self.ledger.release(hold, lost_cash_micros=lost, note=f"{why}; labels that had come" if lost else why)

    def no_cash(self, run_id: str, what: str) -> BudgetExceeded:
        """Return the error of a step that no cash is left for, with the way to more."""
        capped = self.ledger.balance(run_id).available_cash_micros > 0
        top_up = command_line("outlay", "ledger", "topup", self.folder, run_id, "DOLLARS")
        way = "raise --cash-cap, which all runs here share" if capped else f"top the run up: `{top_up}`"
        return BudgetExceeded(f"no cash is left to {what}; {way}")

    def give_back(self, hold: Hold, why: str, *, at_least: float = 0.0) -> str:
        """Release a hold, book the cash of unsaved work as lost, and return a note on it, or "".

        ``at_least``: seconds of the attempt, for one without a heartbeat on this disk.
        """
        heartbeat = self.files(hold.run_id).step(hold.key)
        lost, note, seconds = 0, "", at_least
        if heartbeat.exists():
            kept = kept_seconds(self.store, hold.key.split("/")[0], self.payer(hold.run_id))
            seconds = lost_seconds(heartbeat, kept)
        if seconds > 0:
            lost = self.here.cost_micros(Fraction(seconds) / 3600)
            note = f"{seconds:.1f} s of {self.here.item} to be redone"
        self.ledger.release(hold, lost_cash_micros=lost, note=f"{why}; {note}" if note else why)
        heartbeat.unlink(missing_ok=True)
        return note
