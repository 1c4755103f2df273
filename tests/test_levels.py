"""How often intervals and tests are wrong in made-up worlds: the table of docs/statistics.md.

`python -m tests.test_levels` prints it anew; `make test-slow` checks every cell, `make test` one.
"""

from __future__ import annotations

import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.value_tables import is_significant, mean_interval, paired_difference
from tests.worlds import World

SEEDS = (2, 3, 5, 10)
SPREADS = (0.5, 2.0, 4.0)
COMMON = (0.0, 0.7)
N_ROWS = 3000
N_WORLDS = 4000
MOST_WRONG, LEAST_COVERED = 0.07, 0.93


def rates(world: World, n_seeds: int, n_worlds: int, seed: int = 0) -> tuple[float, float]:
    """How often the strategies' difference is significant, and how often the second one's interval holds its true mean."""
    rng = np.random.default_rng([seed, n_seeds, round(10 * world.spread), round(10 * world.common), world.n_rows])
    truth = world.accuracy
    n_told = n_covered = 0
    for _ in range(n_worlds):
        a, b = world.study(n_seeds, rng)
        n_told += is_significant(paired_difference(a, b))
        found = mean_interval(b)
        n_covered += found.low <= truth <= found.high
    return n_told / n_worlds, n_covered / n_worlds


def test_the_truth_of_a_world_is_what_its_studies_come_to() -> None:
    world = World(4000, 4.0, advantage=5.0)
    rng = np.random.default_rng(1)
    sides = np.array([[side.mean() for side in world.study(50, rng)] for _ in range(20)])
    assert sides[:, 1].mean() == pytest.approx(world.accuracy, abs=0.6)
    assert sides[:, 0].mean() - sides[:, 1].mean() == pytest.approx(5.0, abs=0.6)
    spread = np.std([world.study(400, rng)[1].mean(1) for _ in range(3)], axis=1).mean()
    assert spread == pytest.approx(4.0, rel=0.15)


def test_three_seeds_hold_their_level_and_cover_the_truth() -> None:
    """The one cell of the table that is checked every time, over fewer rows and worlds."""
    n_worlds = 1500
    told, covered = rates(World(200, 2.0), 3, n_worlds)
    # Three standard errors of a share above the level that the whole table must hold.
    assert told <= MOST_WRONG + 3 * (0.07 * 0.93 / n_worlds) ** 0.5
    assert covered >= LEAST_COVERED - 3 * (0.07 * 0.93 / n_worlds) ** 0.5
    # It is a test, not a refusal: a large difference is found.
    assert rates(World(200, 2.0, advantage=20.0), 3, 200)[0] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [30, N_ROWS])
@pytest.mark.parametrize("common", COMMON)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("n_seeds", SEEDS)
def test_level_and_coverage(n_seeds: int, spread: float, common: float, n_rows: int) -> None:
    told, covered = rates(World(n_rows, spread, common), n_seeds, N_WORLDS)
    assert told <= MOST_WRONG
    assert covered >= LEAST_COVERED
    if n_rows == N_ROWS and not common:
        # Another machine may round a draw otherwise: two worlds of a thousand.
        assert printed()[n_seeds, spread][:3:2] == pytest.approx((100 * told, 100 * covered), abs=0.2)


def printed() -> dict[tuple[int, float], list[float]]:
    """The table of docs/statistics.md: seeds and spread → its percentages, those before last."""
    page = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")
    lines = [re.findall(r"[\d.]+", line) for line in page.splitlines() if re.match(r"\| \d+ \| [\d.]+ \| \d", line)]
    return {(int(n_seeds), float(spread)): list(map(float, shares)) for n_seeds, spread, *shares in lines}


def test_the_printed_table_is_complete_and_within_its_promise() -> None:
    found = printed()
    assert set(found) == set(product(SEEDS, SPREADS))
    for told, common, covered, found_5, *before in found.values():
        assert max(told, common) <= 100 * MOST_WRONG
        assert covered >= 100 * LEAST_COVERED
        assert found_5 > told
        assert len(before) == 2


def table(n_worlds: int) -> str:
    """Markdown: level and coverage by seeds and spread, and how often a true difference of 5 points is found."""
    lines = [
        "| seeds | spread | level | level, common luck | coverage | 5 points found |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for n_seeds, spread in product(SEEDS, SPREADS):
        told, covered = rates(World(N_ROWS, spread), n_seeds, n_worlds)
        common, _ = rates(World(N_ROWS, spread, COMMON[1]), n_seeds, n_worlds)
        found, _ = rates(World(N_ROWS, spread, advantage=5.0), n_seeds, n_worlds)
        shares = (told, common, covered, found)
        lines.append(f"| {n_seeds} | {spread:g} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else N_WORLDS))
