"""`objective: published` against the plain loop with the teacher in it that `bench/published_objective.py` keeps."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch

from bench.published_objective import LIMIT, Curves, Pair, compare, make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def curves(pair: Pair) -> Curves:
    return compare(pair, epochs=3, batch_size=7, learning_rate=2e-3)


def test_stored_targets_give_the_losses_of_the_teacher_in_the_loop(curves: Curves) -> None:
    assert len(curves.reference) == len(curves.outlay) == 3 * 7
    assert curves.outlay == pytest.approx(curves.reference, rel=LIMIT)
    assert curves.largest_difference <= LIMIT


def test_the_student_learns_and_there_is_padding_to_count(curves: Curves) -> None:
    assert curves.reference[-1] < 0.9 * curves.reference[0]
    assert len(set(curves.lengths)) >= 3
    assert min(curves.lengths) + 2 < max(curves.lengths)


def test_the_default_objective_is_another_loss(pair: Pair) -> None:
    masked = compare(pair, epochs=1, batch_size=7, learning_rate=2e-3, objective="masked")
    # Two losses may meet at a step by chance.
    assert median(abs(b / a - 1) for a, b in zip(masked.reference, masked.outlay, strict=True)) > 10 * LIMIT


def test_the_program_tells_by_its_exit_code(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import published_objective

    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(pair.texts[:11]), encoding="utf-8")
    folders = ["--teacher", str(pair.teacher), "--student", str(pair.student), "--texts", str(texts)]
    limits = ["--prefix", pair.form.prefix, "--max-source-tokens", "16", "--max-target-tokens", "11", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["published_objective.py", *folders, *limits])
    assert published_objective.main() == 0
    assert "largest relative difference" in capsys.readouterr().out
    monkeypatch.setattr(published_objective, "LIMIT", -1.0)
    assert published_objective.main() == 1
