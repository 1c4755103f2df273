"""The ledger: the one door through which money moves."""

from outlay.ledger.audit import Verification
from outlay.ledger.book import Ledger
from outlay.ledger.chain import Anchor, Entry
from outlay.ledger.reading import Balance, Hold

__all__ = ["Anchor", "Balance", "Entry", "Hold", "Ledger", "Verification"]
