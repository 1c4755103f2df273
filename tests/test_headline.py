"""The headline of the README and its page of results are what the committed points say."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

from bench.method_tables import difference_text, differences_table, headline, headline_table, money
from outlay.metrics.intervals import half_of_means

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results" / "headline"
RIVALS = {"rival_majority": "majority", "rival_tfidf": "TF-IDF", "rival_probe": "probe"}
Row = tuple[str, float]


def scores() -> dict[Row, dict[tuple[str, str], dict[int, float]]]:
    """Test scores by set and budget, then by strategy and methods, then by seed."""
    found: dict[Row, dict[tuple[str, str], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for point in json.loads((FOLDER / "points.json").read_text(encoding="utf-8")):
        request = point["request"]
        method = "auto" if "auto" in request.get("methods", {}).values() else "published"
        name = (request["strategy"], "" if request["strategy"] in RIVALS else method)
        found[request["task"], request["budget_usd"]][name][request["seed"]] = point["result"]["test"]
    return found


def text_of(values: list[float]) -> str:
    half = half_of_means(values)
    assert half is not None
    return f"{statistics.fmean(values):.1f} ± {half:.1f}"


def test_the_table_of_the_readme_is_that_of_the_points() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").replace("*", "").splitlines()
    assert len(scores()) == 8
    page = (FOLDER.parent / "headline.md").read_text(encoding="utf-8")
    assert headline_table(headline()) in page, "run bench/method_tables.py headline"
    assert differences_table(headline()) in page, "run bench/method_tables.py headline"
    for (task, budget), of in scores().items():
        (line,) = (line for line in lines if line.startswith(f"| `{task}`") and f"| {money(budget)} |" in line)
        cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
        columns = [(name, "auto") for name in ("annotate", "distill", "self_distill")]
        published = [(name, "published") for name in ("annotate", "distill")]
        told = {name: text_of(list(seeds.values())) for name, seeds in of.items()}
        rivals = {name: statistics.fmean(seeds.values()) for name, seeds in of.items() if not name[1]}
        best = max(rivals, key=rivals.__getitem__)
        wanted = [told[name] for name in columns] + [f"{told[best]} ({RIVALS[best[0]]})"] + [told[n] for n in published]
        assert cells == wanted
        assert all(len(seeds) == 3 for seeds in of.values())


def test_the_differences_are_those_of_the_same_seeds() -> None:
    page = (FOLDER.parent / "headline.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    gaps = {}
    for (task, budget), of in scores().items():
        one, other = ([of[name, "auto"][seed] for seed in range(3)] for name in ("distill", "annotate"))
        assert f"| {task} | {money(budget)} | {difference_text(one, other)} |" in page
        gaps[task, budget] = [a - b for a, b in zip(one, other, strict=True)]
    means = [statistics.fmean(each) for each in gaps.values()]
    n_above = sum(statistics.fmean(each) > (half_of_means(each) or 0.0) for each in gaps.values())
    told = f"in each of the {len(gaps)} rows, on the same seeds by {min(means):.1f} to {max(means):.1f} points"
    assert told in readme
    assert f"lies above 0 in {n_above}," in readme


def test_the_page_holds_every_mean() -> None:
    page = (FOLDER.parent / "headline.md").read_text(encoding="utf-8").replace("*", "")
    for (task, budget), of in scores().items():
        for (name, _), seeds in of.items():
            if name != "rival_majority":
                assert any(
                    f"| {task} | {money(budget)} |" in line and text_of(list(seeds.values())) in line
                    for line in page.splitlines()
                )
