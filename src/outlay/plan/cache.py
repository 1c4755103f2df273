"""A cache of the values of pure methods, shared by all owners of one memo."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Protocol, TypeVar, TypeVarTuple

from outlay.plan.steps import Step

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ById:
    """An object as a part of a cache key: equal to no other object, and kept alive by the key."""

    __slots__ = ("_it",)

    def __init__(self, it: object) -> None:
        self._it = it

    def __hash__(self) -> int:
        return id(self._it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self._it is other._it


class _Failed:
    """A cached error in place of a value."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Memo:
    """A cache of values by key."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def once(self, at: Hashable, make: Callable[[], T], *, keep: type[Exception] | None = None) -> T:
        """Return the value at key ``at``, made on the first call; errors of the class ``keep`` are cached and raised again, other
        errors are not cached."""
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


class HasMemo(Protocol):
    """An object with a memo."""

    @property
    def memo(self) -> Memo:
        """Memo of the object."""
        ...


R = TypeVar("R", bound=HasMemo)


def cached(*, keep: type[Exception] | None = None) -> Callable[[Callable[[R, *Ts], T]], Callable[[R, *Ts], T]]:
    """Cache a method in the memo of its owner; owners of one memo must be alike in all that the method reads.

    Steps are compared by identity, since a strategy makes each of them once and hashing one takes long; all other arguments by
    value. ``keep``: class of errors that are cached too.
    """

    def decorate(make: Callable[[R, *Ts], T]) -> Callable[[R, *Ts], T]:
        @wraps(make)
        def made(owner: R, *given: *Ts) -> T:
            at = (make.__qualname__, *(ById(each) if isinstance(each, Step) else each for each in given))
            return owner.memo.once(at, lambda: make(owner, *given), keep=keep)

        return made

    return decorate
