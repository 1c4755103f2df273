"""The ledger: holds, settlements and balances of all runs, and the only place where money is booked."""

from outlay.money.ledger.audit import Verification
from outlay.money.ledger.chain import Anchor, Entry
from outlay.money.ledger.ledger import Ledger
from outlay.money.ledger.queries import Balance, Hold

__all__ = ["Anchor", "Balance", "Entry", "Hold", "Ledger", "Verification"]
