"""Values of pure functions, worked out once for all who share a memo."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Same:
    """An object as a part of a key: equal to no other object, and kept alive by the key."""

    __slots__ = ("_it",)

    def __init__(self, it: object) -> None:
        self._it = it

    def __hash__(self) -> int:
        return id(self._it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._it is other._it


class Memo:
    """What was worked out so far, by what was asked. An error is not kept: asking again raises it again."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def once(self, at: Hashable, make: Callable[[], T]) -> T:
        """The value kept at ``at``, made where there is none yet."""
        if at not in self._values:
            self._values[at] = make()
        value: T = self._values[at]
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
        at = (make.__qualname__, *(each if isinstance(each, str | int | None) else Same(each) for each in given))
        return owner.memo.once(at, lambda: make(owner, *given))

    return made
