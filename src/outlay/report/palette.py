"""The colours and shapes of figures and pages, and the strategies with fixed ones."""

from __future__ import annotations

from collections.abc import Sequence

INK, QUIET, GRID = "#222222", "#666666", "#e6e6e6"

# Okabe & Ito (2008): eight colours that people with any colour vision tell apart; the yellow is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# The same hues, dark enough for words on white (contrast 4.5 and more).
TEXT_PALETTE = ("#0072B2", "#B34D00", "#007A57", "#9A4C7B", "#2273A8", "#8A6000", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
# These strategies have the same colour and shape in every figure; any other takes the next free pair.
KNOWN = ("distill", "annotate", "self_distill", "llm_annotate", "distill (N by rule)", "mix", "planned")


def look(name: str, strategies: Sequence[str]) -> int:
    """Return the index of a strategy in the palettes and shapes."""
    if name in KNOWN:
        return KNOWN.index(name)
    free = [i for i, known in enumerate(KNOWN) if known not in strategies] or list(range(len(KNOWN)))
    return free[[each for each in strategies if each not in KNOWN].index(name) % len(free)]
