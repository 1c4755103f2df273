"""The ledger: the one door through which money moves."""

from outlay.money.ledger.audit import Verification
from outlay.money.ledger.chain import Anchor, Entry
from outlay.money.ledger.ledger import Ledger
from outlay.money.ledger.queries import Balance, Hold

__all__ = ["Anchor", "Balance", "Entry", "Hold", "Ledger", "Verification"]
