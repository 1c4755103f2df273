"""The money of one purchase: what a request may cost is taken before it is sent, and what it did not need is given back."""

from __future__ import annotations

from fractions import Fraction
from threading import Lock

from outlay.errors import MoneyError
from outlay.money.amounts import MICROS_PER_USD


class Allowance:
    """Dollars that a purchase may still spend, exact and shared by threads.

    Raises MoneyError for an allowance below zero.
    """

    def __init__(self, usd: Fraction | int) -> None:
        if usd < 0:
            raise MoneyError(f"an allowance of {float(usd):g} dollars is negative; give 0 or more")
        self._left = Fraction(usd)
        self._lock = Lock()

    @classmethod
    def of_micros(cls, micros: int) -> Allowance:
        """Return the allowance of so many micro-dollars."""
        return cls(Fraction(micros, MICROS_PER_USD))

    @property
    def left(self) -> Fraction:
        """Dollars that nothing has taken."""
        return self._left

    def take(self, usd: Fraction) -> bool:
        """Take dollars, and return whether there were as many; otherwise none are taken."""
        with self._lock:
            if usd > self._left:
                return False
            self._left -= usd
            return True

    def give_back(self, usd: Fraction) -> None:
        """Return dollars that were taken and not needed."""
        with self._lock:
            self._left += usd
