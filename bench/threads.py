"""How OpenMP's threads should wait: spinning, asleep at once, or as outlay sets it, alone and on a machine that is shared. ::

    python -m bench.threads [--threads 2] [--rounds 2] [--seconds 4] [--json] [--toy]

Each measurement is a process of its own, since the variables are read when torch loads its OpenMP; the three take turns.
Beside the training loop there is nothing, or two busy processes. Prints lines of Markdown: milliseconds of a step in each way of
waiting, and how many times as fast as spinning and as sleeping the third is. Takes two and a half minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from datetime import date
from statistics import median

from outlay.hardware.openmp import waiting_variables
from outlay.hardware.processor import cpu_name

POLICIES: dict[str, dict[str, str]] = {
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as set": waiting_variables({}),
}
N_BUSY = 2
_BUSY = "while True: pass"


def loop(seconds: float, threads: int) -> float:
    """Milliseconds of a training step of an encoder of two layers of 384 on 16 texts of 48 tokens, once it is warm; at least one
    step, and as many as fit into ``seconds``."""
    import time

    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    layer = nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True, dropout=0.0, activation="gelu")
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.randn(16, 48, 384)

    def step() -> None:
        model(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    n_done, began = 0, time.perf_counter()
    while n_done == 0 or time.perf_counter() - began < seconds:
        step()
        n_done += 1
    return 1000 * (time.perf_counter() - began) / n_done


def child(policy: str, given: argparse.Namespace, n_busy: int) -> float:
    """Milliseconds of a step, in a process that waits in this way, beside so many busy ones."""
    code = f"from bench.threads import loop; print(loop({given.seconds}, {given.threads}))"
    # What a user would get: nothing of this process's own choice of threads.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    with ExitStack() as stack:
        for _ in range(n_busy):
            busy = subprocess.Popen([sys.executable, "-c", _BUSY])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={**own, **POLICIES[policy]},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return float(said.stdout)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="Of one measurement.")
    parser.add_argument("--toy", action="store_true", help="One step, once: whether it runs at all.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.toy:
        given.seconds, given.rounds = 0.0, 1
    found: dict[str, dict[str, float]] = {}
    for where, n_busy in (("alone", 0), (f"beside {N_BUSY} busy processes", N_BUSY)):
        steps: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for turn in range(given.rounds):
            for policy in list(POLICIES) if turn % 2 == 0 else reversed(POLICIES):
                steps[policy].append(child(policy, given, n_busy))
        found[where] = {policy: median(each) for policy, each in steps.items()}
    if given.json:
        print(json.dumps(found))
        return 0
    print("| CPU | where | spinning, ms | asleep, ms | as set, ms | times spinning | times asleep | date, command |")
    print("|---|---|--:|--:|--:|--:|--:|---|")
    for where, each in found.items():
        asked = f"{date.today()}, `python -m bench.threads --threads {given.threads}`"
        shown = " | ".join(f"{ms:.1f}" for ms in each.values())
        times = " | ".join(f"{each[name] / each['as set']:.2f}" for name in ("spinning", "asleep"))
        print(f"| {cpu_name()} | {where} | {shown} | {times} | {asked} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
