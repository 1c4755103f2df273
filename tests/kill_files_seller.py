"""Kill a seller of labels by file at each of its moments, and see that it ends as if nobody had.

``python -m tests.kill_files_seller FOLDER`` prints what came of it as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outlay.labels import Allowance, Delivery, Order
from outlay.tasks.example import Example
from tests.annotators import contrary, fill_in, folder_of, says, seller_in

N_ROWS = 12
STEP = 3
"""One in so many moments is tried."""
GIVEN_OUT = ("README.txt", "answers", "annotator-1.jsonl", "annotator-2.jsonl")
CALLS = ("rename", "replace", "mkdir", "fsync", "unlink")
"""Calls of the system that change what lies on the disk: the process may die before each of them."""


def order() -> Order:
    texts = [f"message {number}" for number in range(N_ROWS)]
    rows = [Example(hashlib.sha256(t.encode()).hexdigest(), (("text", t),), t, None, "made:1") for t in texts]
    return Order.of("order", rows)


def all_at_once(folder: Path) -> Delivery:
    """Every answer is in at the first look after the items are out."""
    return _lived(folder, [range(N_ROWS)])


def in_parts(folder: Path) -> Delivery:
    """Answers come in two parts."""
    return _lived(folder, [range(N_ROWS // 2), range(N_ROWS)])


def _lived(folder: Path, parts: list[range]) -> Delivery:
    def collect() -> Delivery:
        return seller_in(folder, redundancy=2).collect(order(), Allowance(100))

    seller_in(folder, redundancy=2).submit(order())
    collect()
    at = folder_of(folder / "orders")
    for part in parts:
        fill_in(at / "annotator-1.csv", says, part)
        fill_in(at / "annotator-2.csv", contrary, part)
        collect()
    fill_in(at / "annotator-3.csv", says)
    return collect()


def dies_at(moment: int, folder: Path) -> bool:
    """Live in a child that is killed at a moment; return whether it came to that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = moment

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return counted

    for name in CALLS:
        setattr(os, name, before(getattr(os, name)))
    in_parts(folder)
    os._exit(0)


def given_out(folder: Path) -> dict[str, bytes]:
    """What all annotators get and none of them fills in here."""
    there = [path for order in (folder / "orders").glob("order-*") for path in order.iterdir()]
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in there if path.name in GIVEN_OUT}


def main(root: Path) -> None:
    expected = all_at_once(root / "once")
    whole = given_out(root / "once")
    wrong: list[int] = []
    moment = 1
    while dies_at(moment, root / str(moment)):
        # The folder of an order is complete or absent.
        left = given_out(root / str(moment))
        if (left and left != whole) or in_parts(root / str(moment)) != expected:
            wrong.append(moment)
        moment += STEP
    n_kills = (moment - 1) // STEP
    print(json.dumps({"n_kills": n_kills, "wrong": wrong, "n_labels": len(expected.labels)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
