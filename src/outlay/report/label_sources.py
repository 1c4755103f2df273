"""Lines on who gave the labels of some points, where they are no replayed ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from outlay.engine.point import LabelSource, Point


def lines_on_sources(points: Iterable[Point]) -> list[str]:
    """Return a line for each seller: who it is, and the most rows refused and requests lost in a run."""
    most: dict[tuple[str, str], LabelSource] = {}
    for source in (each for point in points for each in point.result.label_sources):
        before = most.setdefault((source.seller, source.who), source)
        reasons = dict.fromkeys((*before.refused, *source.refused))
        refused = {name: max(before.refused.get(name, 0), source.refused.get(name, 0)) for name in reasons}
        n_lost = max(before.n_lost, source.n_lost)
        most[source.seller, source.who] = replace(before, refused=refused, n_lost=n_lost)
    return [
        f"{seller} labels: {who}" + (f"; of a run at most{source.troubles[1:]}" if source.troubles else "")
        for (seller, who), source in most.items()
    ]
