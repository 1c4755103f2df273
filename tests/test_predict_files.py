"""Predictions of a handed-over model for files as people have them: CSV with ids, text lines, standard input, empty rows."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outlay
from outlay.cli import app
from outlay.errors import DataError, UsageError
from tests.runs import FamilyWorld
from tests.test_handover import handed
from tests.test_method_runs import families

__all__ = ["families"]

NOTES = ["heat the agar for 12 minutes", "cool the water", "", "shake the salt"]


@pytest.fixture(scope="module")
def out(families: FamilyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that handed over a classifier."""
    folder = tmp_path_factory.mktemp("run") / "out"
    handed(families, folder, "classes", None, "encoder", "probe")
    return folder


@pytest.fixture(scope="module")
def known(out: Path) -> list[str]:
    return outlay.load_model(out).predict(NOTES, precision="fp32")


def written_csv(path: Path, *, encoding: str = "utf-8-sig", delimiter: str = ";") -> Path:
    """A file as spreadsheets write it."""
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["ticket", "note", "from"])
        writer.writerows([f"T-{i}", note, "a;b"] for i, note in enumerate(NOTES))
    return path


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object, stdin: str = ""
) -> str:
    """The standard output of a command that works."""
    monkeypatch.setattr(sys, "argv", ["outlay", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as stop:
        app.main()
    said = capsys.readouterr()
    assert stop.value.code in (0, None), said.err
    return said.out


def test_a_csv_comes_back_with_its_columns_and_the_predictions(out: Path, known: Sequence[str], tmp_path: Path) -> None:
    file = written_csv(tmp_path / "new.csv")
    result = outlay.predict(
        out, outlay.Data(file=file), out=tmp_path / "said.csv", precision="fp32", probabilities=True
    )
    with (tmp_path / "said.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["ticket", "note", "from", "prediction", "confidence", "p(warm)", "p(cold)"]
    assert [row["ticket"] for row in rows] == [f"T-{i}" for i in range(len(NOTES))]
    assert [row["prediction"] for row in rows] == list(known) == result.answers()
    assert (known[2], rows[2]["confidence"], rows[2]["p(cold)"]) == ("", "", "")
    assert "1 of 4 rows have no text and are answered with nothing" in result.notes
    shares = outlay.load_model(out).predict_proba(NOTES, precision="fp32")
    assert np.isnan(shares[2]).all()
    for row, share in zip(rows, shares, strict=True):
        if row["prediction"]:
            assert [float(row["p(warm)"]), float(row["p(cold)"])] == pytest.approx(share.tolist(), abs=2e-6)
            assert float(row["confidence"]) == pytest.approx(share.max(), abs=2e-6)
            assert row["prediction"] == ("warm", "cold")[int(share.argmax())]


def test_json_lines_keep_ids_and_leave_out_what_was_read(out: Path, known: Sequence[str], tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "note": note, "target": "warm"}) for i, note in enumerate(NOTES)]
    (tmp_path / "new.jsonl").write_text("\n".join(lines), encoding="utf-8")
    outlay.predict(out, outlay.Data(file=tmp_path / "new.jsonl"), out=tmp_path / "said.jsonl", precision="fp32")
    found = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(row["id"], row["source"], row["prediction"], row["gold"]) for row in found] == [
        (i, note, said, "warm") for i, (note, said) in enumerate(zip(NOTES, known, strict=True))
    ]
    assert all("note" not in row and "probabilities" not in row for row in found)


def test_the_same_command_goes_on_and_other_columns_are_another_request(out: Path, tmp_path: Path) -> None:
    data = outlay.Data(file=written_csv(tmp_path / "new.csv"))
    first = outlay.predict(out, data, out=tmp_path / "said.csv", precision="fp32")
    assert not first.was_done
    assert outlay.predict(out, data, out=tmp_path / "said.csv", precision="fp32").was_done
    with pytest.raises(UsageError, match="probabilities"):
        outlay.predict(out, data, out=tmp_path / "said.csv", precision="fp32", probabilities=True)


def test_rows_without_any_text_are_answered_with_nothing(out: Path, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"note": ""}\n{"note": "  "}\n')
    outlay.predict(out, outlay.Data(file=tmp_path / "new.jsonl"), out=tmp_path / "said.jsonl", probabilities=True)
    assert [json.loads(line)["prediction"] for line in (tmp_path / "said.jsonl").read_text().splitlines()] == ["", ""]
    model = outlay.load_model(out)
    assert model.predict(["", {"note": ""}]) == ["", ""]
    assert model.predict([]) == []
    assert np.isnan(model.predict_proba([""])).all()


@pytest.mark.parametrize("name", ["said.parquet", "said.txt", "said.csv.gz"])
def test_other_formats_are_refused(out: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"written as \.jsonl, \.csv or \.tsv"):
        outlay.predict(out, outlay.Data(file=written_csv(tmp_path / "new.csv")), out=tmp_path / name)


def test_a_file_without_the_columns_of_the_task_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'source'; its columns are .*a.*b"):
        outlay.predict(out, outlay.Data(file=tmp_path / "new.csv"), out=tmp_path / "said.csv")
    with pytest.raises(DataError, match="row 1 has the fields text; the model reads note"):
        outlay.load_model(out).predict([{"text": "x"}])


# --- the command -----------------------------------------------------------------------------------------------------


def test_predictions_go_beside_the_file(
    out: Path, known: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written_csv(tmp_path / "new.csv", encoding="utf-8", delimiter=",")
    said = command(monkeypatch, capsys, "predict", out, "--file", file, "--precision", "fp32", "--threads", 1)
    assert f"predictions: {tmp_path / 'new.predictions.csv'}" in said
    with (tmp_path / "new.predictions.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["prediction"] for row in csv.DictReader(stream)] == list(known)


@pytest.mark.parametrize("is_json", [False, True])
def test_standard_input_is_answered_on_standard_output(
    out: Path, known: Sequence[str], is_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = [note for note in NOTES if note]
    stdin = "".join((json.dumps({"note": note}) if is_json else note) + "\n" for note in notes)
    words = ("predict", out, "--file", "-", "--precision", "fp32", "--threads", 1)
    found = [json.loads(line) for line in command(monkeypatch, capsys, *words, stdin=stdin).splitlines()]
    assert [row["source"] for row in found] == notes
    assert [row["prediction"] for row in found] == [said for said in known if said]


def test_a_handed_over_model_is_scored_on_its_own_test_split(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("evaluate", out, "--out", tmp_path / "scores", "--precision", "fp32", "--threads", 1)
    command(monkeypatch, capsys, *words)
    point = json.loads((out / "points.json").read_text())[0]
    scores: dict[str, Any] = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    assert {name: each["value"] for name, each in scores.items()} == pytest.approx(
        {name: each["value"] for name, each in point["result"]["scores"].items()}
    )
