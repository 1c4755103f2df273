"""Values of pure functions, worked out once for all who share a memo."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ById:
    """An object as a part of a key: equal to no other object, and kept alive by the key."""

    __slots__ = ("_it",)

    def __init__(self, it: object) -> None:
        self._it = it

    def __hash__(self) -> int:
        return id(self._it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self._it is other._it


class _Failed:
    """In place of a value: the error that came instead."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Memo:
    """What was worked out so far, by what was asked."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def once(self, at: Hashable, make: Callable[[], T], *, keep: type[Exception] | None = None) -> T:
        """The value kept at ``at``, made where there is none yet; errors of the class ``keep`` are kept and raised again, others
        leave nothing behind."""
        if at not in self._values:
            try:
                self._values[at] = make()
            except Exception as error:
                if keep is not None and isinstance(error, keep):
                    self._values[at] = _Failed(error)
                raise
        value: T | _Failed = self._values[at]
        if isinstance(value, _Failed):
            raise value.error.with_traceback(None)
        return value


class Remembering(Protocol):
    """Whoever has a memo."""

    @property
    def memo(self) -> Memo:
        """Its memo."""
        ...


R = TypeVar("R", bound=Remembering)


def once(make: Callable[[R, *Ts], T]) -> Callable[[R, *Ts], T]:
    """``make``, called once for the same arguments by all who share a memo, which must be alike in all that it reads.

    Texts and numbers are told apart by their value, objects by which they are.
    """

    @wraps(make)
    def made(owner: R, *given: *Ts) -> T:
        at = (make.__qualname__, *(each if isinstance(each, str | int | None) else ById(each) for each in given))
        return owner.memo.once(at, lambda: make(owner, *given))

    return made
