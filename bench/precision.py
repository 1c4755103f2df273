"""How fast bf16 is on this machine, as a multiple of float32's speed: as it is, and with its CPU held to AVX2. ::

    python -m bench.precision [--threads N] [--seconds 3] [--rounds 2] [--json] [--toy]

The ratio of a matrix product, which `--precision auto` goes by (`outlay.hardware.precision`), and that of a training step of
MiniLM's shape (6 layers of 384, 8 texts of 64 tokens) under autocast. Each measurement is a process of its own, since the
limits are read when torch is loaded; the two precisions take turns within it. Prints lines of Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date

from outlay.hardware.openmp import waiting_variables
from outlay.hardware.precision import LIMITS, VARIABLE, Bf16Speed, ratio_words
from outlay.hardware.processor import cpu_name
from outlay.hardware.quota import usable_cores

AVX2 = {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Makes a CPU without bf16 of any that has AVX2: the first holds oneDNN, whose products these are, the second torch itself."""


def steps(seconds: float, threads: int) -> dict[str, float]:
    """Milliseconds of a training step in each precision, the fastest of those that fit into ``seconds``; each once at least."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = BertForSequenceClassification(
        BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_labels=4)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids, labels = torch.randint(0, 30522, (8, 64)), torch.randint(0, 4, (8,))

    def step(is_bf16: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1000 * (time.perf_counter() - began)

    step(False)
    best, began = {False: float("inf"), True: float("inf")}, time.perf_counter()
    while best[True] == float("inf") or time.perf_counter() - began < seconds:
        for is_bf16 in best:
            best[is_bf16] = min(best[is_bf16], step(is_bf16))
    return {"fp32": best[False], "bf16": best[True]}


def child(code: str, limits: dict[str, str]) -> object:
    """What an expression prints as JSON, in a process of its own under these limits and no others."""
    own = {name: value for name, value in os.environ.items() if name not in (*LIMITS, VARIABLE)}
    said = subprocess.run(
        [sys.executable, "-c", f"import json; from bench.precision import *; print(json.dumps({code}))"],
        env={**own, **waiting_variables(own), **limits},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(said.stdout.splitlines()[-1])


def product() -> float:
    """The ratio as it is measured for `auto`, anew."""
    from outlay.hardware.bf16 import measure_bf16_ratio

    return measure_bf16_ratio()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of the training steps of one process.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--toy", action="store_true", help="Once, and one step only: whether it runs at all.")
    given = parser.parse_args()
    if given.toy:
        given.seconds, given.rounds = 0.0, 1
    found: dict[str, dict[str, object]] = {}
    where = {"as it is": {}, "held to AVX2": AVX2}
    for turn in range(given.rounds):
        for name, limits in where.items() if turn % 2 == 0 else reversed(where.items()):
            ratio = child("product()", limits)
            taken = child(f"steps({given.seconds}, {given.threads})", limits)
            assert isinstance(ratio, float)
            assert isinstance(taken, dict)
            before = found.get(name, {})
            # The fastest of a machine that others use too is what it can do.
            found[name] = {
                "product": max(ratio, float(str(before.get("product", 0.0)))),
                **{each: min(taken[each], float(str(before.get(each, "inf")))) for each in ("fp32", "bf16")},
            }
    if given.json:
        print(json.dumps({"cpu": cpu_name(), **found}))
        return 0
    print("| CPU | | bf16 ratio, product | step fp32, ms | step bf16, ms | bf16 ratio, step | auto | date, command |")
    print("|---|---|--:|--:|--:|--:|---|---|")
    asked = f"{date.today()}, `python -m bench.precision --threads {given.threads}`"
    for name, each in found.items():
        ratio, fp32, bf16 = (float(str(each[key])) for key in ("product", "fp32", "bf16"))
        auto = Bf16Speed(cpu_name(), ratio).precision
        cells = (
            cpu_name(),
            name,
            ratio_words(ratio),
            f"{fp32:.1f}",
            f"{bf16:.1f}",
            ratio_words(fp32 / bf16),
            auto,
            asked,
        )
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
