"""`bench/gpu.py` at toy scale, and the arithmetic behind its table."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import gpu
from bench.drawn import END, Endings, Lengths, drawn_lengths, drawn_rows
from bench.gpu_table import NOT_MEASURED, Card, Measured, Row, card_of, prices, table

pytestmark = pytest.mark.bench

H200 = Card("NVIDIA H200", True, 989e12, 3.5, "a test")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_toy_run_measures_every_step_and_prices_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    file = tmp_path / "figures.json"
    assert gpu.main(["--toy", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    rows = [cells(line) for line in printed[printed.rindex("| step |") :].splitlines()[2:]]
    assert [row[0] for row in rows] == [
        *("teacher pass", "fine-tune teacher", "fine-tune teacher"),
        *("distil student", "student on cross-entropy") * 2,
        *("**in all**",) * 2,
        "published (Kang et al. 2023, Table 6)",
    ]
    assert ["lora" in row[1] for row in rows[1:3]] == [False, True]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows[:7])
    assert all(row[-2:] == [NOT_MEASURED] * 2 for row in rows[:-1])
    assert rows[-1][-2:] == ["36 + 232 (A40)", "502.50"]
    kept = json.loads(file.read_text())["rows"]
    taught = kept[0]["measured"]
    assert taught["n_examples"] == gpu.TOY.n_taught
    assert [row["measured"]["n_examples"] for row in kept[1:]] == [gpu.TOY.n_steps * n for n in (4, 4, 4, 4, 8, 8)]


def test_a_step_that_fails_or_hangs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(seconds: float) -> Measured:
        raise RuntimeError("out of order\nand more")

    def hangs(seconds: float) -> Measured:
        time.sleep(30)
        raise AssertionError

    monkeypatch.setattr(gpu, "GRACE_SECONDS", -0.9)
    assert gpu.attempt(gpu.Task("a", "b", 7, fails), 1.0).reason == "RuntimeError: out of order"
    assert gpu.attempt(gpu.Task("a", "b", 7, hangs), 1.0).reason.startswith("OutOfTime")
    assert gpu.attempt(gpu.Task("a", "b", 7, hangs), 0.5).reason == "no time was left"


def test_the_table_comes_in_time_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    printed: list[str] = []

    def leave(code: int) -> None:
        codes.append(code)

    def hangs(*_: object) -> None:
        for _ in range(100):
            if codes:
                printed.append(capsys.readouterr().out)
                break
            time.sleep(0.1)

    monkeypatch.setattr(gpu.os, "_exit", leave)
    monkeypatch.setattr(gpu, "measure", hangs)
    gpu.main(["--toy", "--minutes", "0.001"])
    assert codes == [1]
    assert "36 + 232 (A40)" in printed[0].splitlines()[-1]


def test_the_table_adds_up_what_the_pipeline_takes() -> None:
    rows = [
        Row("teacher pass", "w", 3600, Measured(2, 11, 0.5, 989 * 10**11, 3 * 10**9)),
        Row("fine-tune teacher", "x, lora", 7200, Measured(5, 11, 1.0, 1, 0)),
        Row("fine-tune teacher", "x", 7200, Measured(4, 11, 1.0, 1, 0)),
        Row("fine-tune teacher", "x again", reason="no"),
        Row("distil student", "y", 36000, Measured(10, 11, 1.0, 1, 0)),
        Row("distil student", "z", 36000, Measured(20, 11, 1.0, 1, 0)),
    ]
    lines = [cells(line) for line in table(rows, H200)[2:]]
    assert lines[0] == ["teacher pass", "w", "4.0", "22", "20.0%", "3.0", "0.250", "0.88"]
    assert [line[-2:] for line in lines[-3:-1]] == [["1.750", "6.12"], ["1.250", "4.38"]]
    assert lines[-3][1] == "x + w + y"
    assert NOT_MEASURED in lines[3][2]


def test_cards_are_known_by_name() -> None:
    assert card_of("NVIDIA H200", counts=True).usd_per_hour == prices()["h200"][0]
    assert card_of("NVIDIA H100 80GB HBM3", counts=True).peak_flops_per_second == 989e12
    assert card_of("NVIDIA A100-SXM4-80GB", counts=True).usd_per_hour == prices()["a100-80gb"][0]
    assert card_of("Quantum 9", counts=True).peak_flops_per_second is None


def test_lengths_are_drawn_about_their_means_and_together() -> None:
    source, answer = drawn_lengths(Lengths(25, 34, 128), 20_011, seed=3)
    assert source.mean() == pytest.approx(25, rel=0.02)
    assert answer.mean() == pytest.approx(34, rel=0.02)
    assert np.corrcoef(np.log(source), np.log(answer))[0, 1] == pytest.approx(0.89, abs=0.02)
    assert answer.min() >= 2
    assert answer.max() == 128


def test_rows_are_closed_and_hold_no_other_closing_token() -> None:
    sources, units = drawn_rows(Lengths(7, 5, 13), 31, 97)
    for flat, offsets in ((sources.encoded.ids, sources.encoded.offsets), (units.ids, units.offsets)):
        assert np.flatnonzero(flat == END).tolist() == (offsets[1:] - 1).tolist()
        assert flat.max() < 97


@pytest.mark.parametrize("every", [1, 3, 100])
def test_answers_end_where_they_are_to_end(every: int) -> None:
    """Rows leave the batch after every so many steps, as a decoder lets them."""
    lengths = np.array([5, 2, 7, 2, 11, 3, 7])
    rows = np.array([6, 0, 3, 4, 2])
    endings, layer = Endings(lengths, torch.device("cpu")), nn.Linear(13, 17)
    layer.register_forward_hook(endings)
    with torch.no_grad():
        for _ in range(2):
            endings.begin(rows)
            held, said = rows, {int(row): 0 for row in rows}
            open_rows = set(said)
            for step in range(1, 12):
                tokens = layer(torch.randn(len(held), 1, 13))[:, -1].argmax(-1)
                for row, token in zip(held.tolist(), tokens.tolist(), strict=True):
                    if row in open_rows:
                        said[row] += 1
                        open_rows -= {row} if token == END else set()
                if step % every == 0:
                    held = np.array([row for row in held if row in open_rows])
                if not open_rows:
                    break
            assert said == {int(row): int(lengths[row]) for row in rows}
        with pytest.raises(RuntimeError, match="whole answers"):
            layer(torch.randn(5, 2, 13))


def test_it_needs_no_pydantic() -> None:
    """In a child of this process, which has torch loaded: to load it anew takes seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for name in [name for name in sys.modules if name.split(".")[0] in ("outlay", "bench", "pydantic")]:
                del sys.modules[name]
            sys.modules["pydantic"] = None  # type: ignore[assignment]
            importlib.import_module("bench.gpu")
            code = 0 if "outlay.errors" in sys.modules else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
