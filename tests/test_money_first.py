"""Money before work: what can be known to fail is refused before a label is bought, and what is done costs what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlay.engine.prepare import RunBuilder
from outlay.money.amounts import PriceBook
from outlay.money.ledger import Ledger
from outlay.plan.request import Request
from tests.checkpoints import make_bart, make_checkpoint, make_gpt2, make_t5
from tests.test_cli import Ran, outlay, refused, row

N_POSITIONS = {"bert": 64, "gpt2": 256, "bart": 128}
PRICES = '[[price]]\nitem = "label/t"\nunit = "label"\nusd = "0.1"\n'
TASK: dict[str, Any] = {
    "name": "tickets",
    "text": "{message}",
    "labels": ["other", "refund", "delivery"],
    "price_item": "label/t",
    "dev": "none",
    "data": {"train": {"file": "train.jsonl", "target": "label"}, "test": {"file": "test.jsonl", "target": "label"}},
    "pool": [{"name": "train", "split": "train"}],
}
QUICK = tuple(f"--set={role}.epochs=1" for role in ("teacher", "student", "distil"))


@dataclass(frozen=True)
class Town:
    """Models, rows and prices below one folder."""

    root: Path

    def model(self, name: str) -> Path:
        return self.root / name

    def task(self, folder: Path, **changes: Any) -> Path:
        """A task of 30 train rows and 8 test rows, its texts too long for any model here."""
        folder.mkdir(parents=True, exist_ok=True)
        long = [{**each, "message": f"{each['message']} {'please ' * 300}"} for each in map(row, range(38))]
        for name, rows in (("train", long[:30]), ("test", long[30:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        (folder / "prices.toml").write_text(PRICES)
        (folder / "task.yaml").write_text(yaml.safe_dump({**TASK, **changes}))
        return folder / "task.yaml"

    def run(self, task: Path, *more: object, budget: object = 2, command: str = "run", model: str = "bert") -> Ran:
        folder = task.parent
        name = "--strategy" if command == "run" else "--strategies"
        asked: tuple[object, ...] = () if name in more else (name, "annotate")
        dollars = ("--budget" if command == "run" else "--budgets", budget)
        models = ("--teacher", self.model(model), "--student", self.model(model), "--threads", 1, *QUICK)
        places = ("--prices", folder / "prices.toml", "--out", folder / "out", "--store", folder / "store")
        return outlay(command, task, *dollars, *asked, *models, *places, *more)


def bought(folder: Path) -> bool:
    """Whether a label was bought, or any money held, below a folder."""
    if (folder / "store" / "bought").exists() and any((folder / "store" / "bought").iterdir()):
        return True
    if not (folder / "out" / "ledger.sqlite").exists():
        return False
    ledger = Ledger(folder / "out" / "ledger.sqlite")
    return any(entry.kind != "open" for run in ledger.run_ids() for entry in ledger.entries(run))


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    root = tmp_path_factory.mktemp("town")
    texts = [each["message"] + " other refund delivery please" for each in map(row, range(60))]
    make_checkpoint(root / "bert", texts, n_layers=2, hidden_size=16)
    make_gpt2(root / "gpt2", texts, n_layers=1, hidden_size=16)
    make_bart(root / "bart", texts, n_layers=1, hidden_size=16)
    make_t5(root / "t5", texts, n_layers=1, hidden_size=16)
    return Town(root)


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_run_cuts_texts_where_the_model_ends_and_says_so(town: Town, tmp_path: Path, model: str) -> None:
    task = town.task(tmp_path, max_source_tokens=1000)
    ran = town.run(task, model=model)
    assert ran.code == 0, ran.err
    said = " ".join(ran.err.split())
    ends = "reads at most 64 tokens" if model == "bert" else "has 256 positions for text and answer together"
    assert f"max_source_tokens is 1,000, and model '{town.model(model)}' {ends}: texts are cut at" in said
    [manifest] = (tmp_path / "out").glob("runs/*/manifest.json")
    assert any("texts are cut at" in line for line in json.loads(manifest.read_text())["derivation"])
    assert f"rows were longer than {64 if model == 'bert' else 249} tokens and were cut" in said


@pytest.mark.parametrize(
    ("model", "limit"), [("bert", 64), ("gpt2", 249), pytest.param("bart", 128, marks=pytest.mark.slow)]
)
def test_a_limit_above_the_model_is_the_models_own(town: Town, tmp_path: Path, model: str, limit: int) -> None:
    """Weights and answers are, bit for bit, those of a task that asks for what the model can do."""
    rows = tmp_path / "rows.jsonl"
    texts = [{**each, "message": f"{each['message']} {'please ' * 300}"} for each in map(row, range(12))]
    rows.write_text("".join(json.dumps({"source": e["message"], "target": e["label"]}) + "\n" for e in texts))
    labels, settings = ("--labels", "other,refund,delivery"), ("--epochs", 1, "--threads", 1, "--precision", "fp32")
    made = {}
    for asked in (1000, limit):
        out = tmp_path / str(asked)
        train = ("finetune", "--model", town.model(model), "--train-file", rows, *labels, *settings)
        ran = outlay(*train, "--max-source-tokens", asked, "--out", out)
        assert ran.code == 0, ran.err
        assert ("texts are cut at" in ran.out) == (asked == 1000)
        answers = tmp_path / f"{asked}.jsonl"
        assert outlay("predict", out, "--file", rows, "--out", answers, "--precision", "fp32", "--threads", 1).code == 0
        made[asked] = (
            (out / "model.safetensors").read_bytes(),
            answers.read_bytes(),
            (out / "outlay.json").read_bytes(),
        )
    assert made[1000] == made[limit]


@pytest.mark.slow
def test_targets_are_taught_and_learnt_within_both_models(town: Town, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [{**each, "message": f"{each['message']} {'please ' * 300}"} for each in map(row, range(9))]
    rows.write_text("".join(json.dumps({"source": e["message"], "target": e["label"]}) + "\n" for e in texts))
    quick = ("--epochs", 1, "--threads", 1)
    teacher, targets, student = (tmp_path / name for name in ("teacher", "targets", "student"))
    train = ("finetune", "--model", town.model("gpt2"), "--train-file", rows, "--labels", "other,refund,delivery")
    assert outlay(*train, "--max-source-tokens", 1000, *quick, "--out", teacher).code == 0
    taught = outlay("teach", teacher, "--file", rows, "--student", town.model("bert"), "--threads", 1, "--out", targets)
    assert taught.code == 0, taught.err
    learnt = outlay("distill", targets, "--student", town.model("bert"), *quick, "--out", student)
    assert learnt.code == 0, learnt.err
    assert "reads at most 64 tokens: texts are cut at 64" in " ".join(learnt.out.split())


def test_quotes_are_made_of_what_is_read(town: Town, tmp_path: Path) -> None:
    counts = {}
    for name in ("bert", "gpt2", "bart"):
        for asked in (1000, 40):
            task = town.task(tmp_path / f"{name}-{asked}", max_source_tokens=asked)
            model = str(town.model(name))
            request = Request(str(task), "annotate", 2_000_000, teacher=model, student=model, threads=1)
            bench = RunBuilder(PriceBook.load([task.parent / "prices.toml"]))
            known = bench.prepare(request).context
            counts[name, asked] = known.tokens[model].train[-1] / 30
        assert counts[name, 1000] <= N_POSITIONS[name]
    assert counts["bert", 1000] == 64
    assert counts["bart", 1000] == 128
    assert counts["gpt2", 1000] == 256 - 8 + 1
    assert all(counts[name, 40] == 40 for name in N_POSITIONS)


@pytest.mark.parametrize(
    ("model", "changes", "says"),
    [
        ("bert", {"max_source_tokens": 2}, "max_source_tokens is 2 for model"),
        ("gpt2", {"max_target_tokens": 300}, "256 positions for text and answer together"),
        ("gpt2", {"prefix": "please " * 80, "max_source_tokens": 20}, "no token of a text is left"),
        ("t5", {"prefix": "please " * 80, "max_source_tokens": 20}, "no token of a text is left"),
        ("t5", {"labels": ["other", "refund", "delivery", "日本"]}, "cannot spell '日本'"),
        ("t5", {"labels": ["other", "refund", "delivery"], "max_target_tokens": 1}, "more than max_target_tokens = 1"),
    ],
)
def test_a_model_that_cannot_do_it_is_refused_first(
    town: Town, tmp_path: Path, model: str, changes: dict[str, Any], says: str
) -> None:
    task = town.task(tmp_path, **changes)
    for command in ("run", "compare"):
        refused(town.run(task, model=model, command=command), says)
        assert not bought(tmp_path)
    finetune = ("finetune", "--task", task, "--model", town.model(model), "--epochs", 1, "--out", tmp_path / "single")
    refused(outlay(*finetune), says)
    assert not (tmp_path / "single" / "model.safetensors").exists()


# --- requests that cannot come to anything ---------------------------------------------------------------------------


def _unlabelled(folder: Path) -> None:
    task = yaml.safe_load((folder / "task.yaml").read_text())
    del task["data"]["train"]["target"]
    (folder / "task.yaml").write_text(yaml.safe_dump(task))


def _priced(unit: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "prices.toml").write_text(PRICES.replace('unit = "label"', f'unit = "{unit}"'))

    return spoil


BAD: dict[str, tuple[tuple[object, ...], Callable[[Path], None] | None, tuple[str, ...]]] = {
    "seed": (("--seed", 2**64), None, ("the seed is 18446744073709551616", "from 0 to 18446744073709551615")),
    "a role's seed": (
        ("--set", f"student.seed={2**64}"),
        None,
        ("seed is 18446744073709551616", "18446744073709551615"),
    ),
    "threads": (("--threads", 2**31), None, ("threads is 2147483648", "at most 1,024")),
    "price of here": (("--here", "label/t"), None, ("'label/t' is sold per label", "by the hour")),
    "8 bits": (("--set", "student.optimizer=adamw_8bit"), None, ("adamw_8bit needs",)),
    "cut": (("--student", "cut:9"), None, ("cut:9 of a model with 2 layers",)),
    "unlabelled": (
        (),
        _unlabelled,
        ("buys labels of people, who replay gold labels", "has no `target`", "name people of another kind"),
    ),
    "by the hour": ((), _priced("hour"), ("'label/t' is sold per hour", "per label, or per 1000 labels")),
    "by the day": ((), _priced("day"), ("the unit 'day' is unknown", "write label, hour or 1000 tokens")),
    "by three": ((), _priced("3 labels"), ("no exact price of one label",)),
    "no price": (
        (),
        lambda folder: (folder / "prices.toml").write_text(PRICES.replace("label/t", "label/u")) and None,
        ("no price for 'label/t'", "known:", "label/u"),
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_nothing_is_bought_for_a_request_that_cannot_be_met(
    town: Town, tmp_path: Path, command: str, name: str
) -> None:
    options, spoil, says = BAD[name]
    task = town.task(tmp_path)
    if spoil is not None:
        spoil(tmp_path)
    refused(town.run(task, *options, command=command), *says)
    assert not bought(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_grid_is_checked_whole_before_its_first_run_buys(town: Town, tmp_path: Path) -> None:
    """The second strategy of the grid asks for what there is not; the first one could be prepared."""
    task = town.task(tmp_path)
    grid = ("--strategies", "annotate,llm_annotate", "--llm-error-rate", "0.3", "--llm-price-item", "cpu")
    refused(town.run(task, *grid, command="compare"), "'cpu' is sold per hour", "name an item with a price per label")
    assert not bought(tmp_path)


def test_settings_of_a_student_that_teaches_itself_are_refused_first(town: Town, tmp_path: Path) -> None:
    """It is trained twice, first as its own teacher, by the settings of a student."""
    asked = ("--strategy", "self_distill", "--student", "cut:1", "--n-initial", 9)
    refused(town.run(town.task(tmp_path), *asked, "--set", "student.optimizer=adamw_8bit"), "adamw_8bit needs")
    assert not bought(tmp_path)


def test_a_temperature_that_no_teacher_writes_for_is_refused_first(town: Town, tmp_path: Path) -> None:
    asked = ("--strategy", "distill", "--set", "distil.temperature=3")
    refused(town.run(town.task(tmp_path), *asked), "distil.temperature is 3", "for 1, 2, 4")
    assert not bought(tmp_path)


def test_adapters_for_layers_nobody_knows_are_refused_first(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlay.models.peft_methods.importlib.util.find_spec", lambda name: None)
    refused(town.run(town.task(tmp_path), "--set", "student.method=lora"), "pip install 'outlay[peft]'")
    assert not bought(tmp_path)


@pytest.mark.parametrize("seed", [-1, 4294967296, 2**64 - 1, -(2**63)])
def test_every_seed_that_a_generator_takes_trains(town: Town, tmp_path: Path, seed: int) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"source": e["message"], "target": e["label"]}) + "\n" for e in map(row, range(6)))
    )
    train = ("finetune", "--model", town.model("bert"), "--train-file", rows, "--labels", "other,refund,delivery")
    assert outlay(*train, "--epochs", 1, "--threads", 1, "--seed", seed, "--out", tmp_path / "out").code == 0
    for beyond in (2**64, -(2**63) - 1):
        refused(
            outlay(*train, "--seed", beyond, "--out", tmp_path / "no"), f"seed is {beyond}; it must be", "to 18446744"
        )
    assert not (tmp_path / "no").exists()


def test_seeds_of_files_have_the_same_limits(tmp_path: Path, town: Town) -> None:
    changes = {"data": {**TASK["data"], "train": {"file": "train.jsonl", "target": "label", "seed": 2**64}}}
    refused(town.run(town.task(tmp_path, **changes)), "data.train.seed", "less than or equal to 18446744073709551615")
    refused(
        outlay("model", "make", "bert-tiny", "--texts", tmp_path / "none", "--seed", 2**64, "--out", tmp_path / "m"),
        "the seed is 18446744073709551616",
    )


def test_a_task_is_checked_for_the_price_of_its_label(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    ran = outlay("task", "check", task)
    # Without a file of prices it is a warning: they may be given to the run.
    assert ran.code == 0
    assert "train" in ran.out
    assert "warning: no price for 'label/t'" in ran.err
    assert any("no price for 'label/t'" in line for line in outlay("task", "check", task, "--json").json["warnings"])
    other = tmp_path / "other.toml"
    other.write_text("[[price]]\nitem = 'label/u'\nunit = 'label'\nusd = 1\n")
    lacking = outlay("task", "check", task, "--prices", other)
    assert lacking.code == 1
    assert "no price for 'label/t'" in lacking.err
    assert "label/demo" in ran.err
    assert ran.err.count("\n") == 1
    assert outlay("task", "check", task, "--prices", tmp_path / "prices.toml").code == 0
    _priced("hour")(tmp_path)
    assert "sold per hour" in outlay("task", "check", task, "--prices", tmp_path / "prices.toml").err


def test_a_thousand_labels_at_a_price_are_charged_label_by_label(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    (tmp_path / "prices.toml").write_text(PRICES.replace('"label"', '"1000 labels"').replace('"0.1"', '"100"'))
    ran = town.run(task, "--student-training", "free", budget="1.25")
    assert ran.code == 0, ran.err
    [point] = json.loads((tmp_path / "out" / "points.json").read_text())
    assert (point["result"]["n_labels"], point["result"]["charge_usd"]) == (12, 1.2)
    assert "12 labels at $0.10" in ran.out
    assert "labelss" not in ran.out


# --- what is left of it ----------------------------------------------------------------------------------------------


def test_a_run_without_a_result_says_why_and_ends_with_1(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    ran = town.run(task, budget="0.1")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("outlay: no result: 3 labels and the student's training cost $0.3")
    assert "raise it to $0.3" in ran.err
    assert not bought(tmp_path)
    # Nothing of worth lies there, so that another budget is no other report.
    assert town.run(task, budget=2).code == 0


def test_a_comparison_ends_with_1_where_no_point_has_a_result(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    ran = town.run(task, "--strategies", "annotate,distill", budget="0.1", command="compare")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("outlay: none of the 2 points has a result, the first: 3 labels")
    assert (tmp_path / "out" / "report.html").exists()
    some = town.run(task, budget="0.1,2", command="compare")
    assert some.code == 0
    assert "na: 3 labels" in some.out


def test_another_request_does_not_take_a_reports_place(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    first = town.run(task, budget=1, command="compare")
    assert first.code == 0, first.err
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.md")}
    other = town.run(task, budget=2, command="compare")
    refused(
        other,
        "holds the report of another request",
        "drop 1 of its 1 points",
        "annotate at $1.00, seed 0",
        "--overwrite",
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.md")} == before
    assert town.run(task, budget=1, command="compare").out == first.out
    grown = town.run(task, budget="1,2", command="compare")
    assert grown.code == 0, grown.err
    assert len(json.loads((tmp_path / "out" / "points.json").read_text())) == 2
    assert town.run(task, budget=2, command="compare").code == 1
    replaced = town.run(task, "--overwrite", budget=2, command="compare")
    assert replaced.code == 0, replaced.err
    [point] = json.loads((tmp_path / "out" / "points.json").read_text())
    assert point["request"]["budget_usd"] == 2
    assert len(Ledger(tmp_path / "out" / "ledger.sqlite").run_ids()) == 2


def test_a_comparison_that_grows_loses_nothing_where_it_is_stopped(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outlay.engine.run import RunExecution

    task = town.task(tmp_path)
    assert town.run(task, budget="1", command="compare").code == 0

    def stop(self: RunExecution) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunExecution, "open", stop)
        assert town.run(task, budget="0.9,1", command="compare").code == 130
    [point] = json.loads((tmp_path / "out" / "points.json").read_text())
    assert point["request"]["budget_usd"] == 1
    refused(town.run(task, budget="2", command="compare"), "holds the report of another request")


def test_a_folder_of_a_study_is_not_taken(town: Town, tmp_path: Path) -> None:
    from outlay.money.amounts import PriceBook
    from outlay.report.results import Header
    from outlay.study.index import StudyIndex

    task = town.task(tmp_path)
    header = Header("toy", "A toy study", "plain", scale="cpu")
    (tmp_path / "out").mkdir()
    StudyIndex(header, str(tmp_path / "store"), PriceBook.load().hour("cpu"), ()).write(tmp_path / "out")
    refused(town.run(task), "holds a study; give another --out")
    (tmp_path / "out" / "study.json").write_text("{}")
    refused(town.run(task), "study.json", "give another --out")


def test_scores_of_another_request_are_not_written_over(tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"prediction": "a", "gold": gold}) + "\n" for gold in "abab"))
    score = ("evaluate", "--predictions", said, "--labels", "a,b", "--out", tmp_path / "scores")
    assert outlay(*score, "--metric", "accuracy").code == 0
    first = (tmp_path / "scores" / "scores.json").read_bytes()
    assert outlay(*score, "--metric", "accuracy").code == 0
    refused(outlay(*score, "--metric", "f1"), "holds the scores of another request", "metric is", "--overwrite")
    assert (tmp_path / "scores" / "scores.json").read_bytes() == first
    said.write_text(said.read_text().replace('"prediction": "a"', '"prediction": "b"', 1))
    refused(outlay(*score, "--metric", "accuracy"), "predictions_sha256")
    assert outlay(*score, "--metric", "f1", "--overwrite").code == 0


def test_a_test_split_of_one_row_has_a_table_and_no_test(town: Town, tmp_path: Path) -> None:
    task = town.task(tmp_path)
    (tmp_path / "test.jsonl").write_text((tmp_path / "test.jsonl").read_text().splitlines()[0] + "\n")
    grid = ("--strategies", "annotate,distill", "--n-initial", 9, "--no-rule", "--seeds", 2)
    ran = town.run(task, *grid, budget="1.5", command="compare")
    assert ran.code == 0, ran.err
    assert "annotate" in ran.out
    assert (tmp_path / "out" / "report.html").exists()
    text = (tmp_path / "out" / "table.md").read_text()
    assert " p " not in text
    assert "significant" not in text


# --- studies ---------------------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "name": "dollars",
    "strategies": ["annotate", "distill"],
    "student_training": "free",
    "scales": {"cpu": {"n_initial": 9, "budget_usd": 1.5, "threads": 1, "tasks": {"task.yaml": {}}}},
}
KEYS: dict[str, dict[str, Any]] = {
    "budget_usd": {},
    "budget_usd by strategy": {"budget_usd": {"annotate": ["1.20", 1.5], "others": "$1.50"}},
    "budget_usd without N": {"n_initial": None, "budget_usd": [1, 1.5]},
    "added_usd": {"budget_usd": None, "added_usd": {"annotate": [0, 0.3], "distill": 0.5}},
    "pool_rows": {"pool_rows": {"distill": [10, 20], "others": 30}},
    "settings": {"settings": {"teacher": {"epochs": 1, "lr": 0.001}, "teach": {"max_logits": 8}}},
    "llm": {"strategies": ["llm_annotate", "mix"], "llm": {"error_rate": 0.25, "price_item": "label/t"}},
    "machine": {"machine": "t4"},
    "seeds": {"n_seeds": 2, "first_seed": 5},
    "last seed": {"first_seed": 2**64 - 1},
    "notes": {"notes": ["small"]},
    "any_task": {"any_task": {"n_initial": 9}},
    "of a task": {"tasks": {"task.yaml": {"budget_usd": 1.3, "n_initial": [6, 9]}}},
    "absent": {"tasks": {"task.yaml": {}, "wlp": {"absent": "no data here", "budget_usd": 9}}},
    "models": {"models": {"student": ["cut:1", "BERT"], "base": "BERT", "general": "BERT"}},
    "general": {"strategies": ["general_distill"], "models": {"general": "BERT"}},
}


def _study(town: Town, folder: Path, changes: dict[str, Any], title: dict[str, Any] | None = None) -> Path:
    town.task(folder)
    own = {"models": {"student": "cut:1"}, **changes}
    scale = {**STUDY["scales"]["cpu"], **own, "models": {"teacher": str(town.model("bert")), **own["models"]}}
    scale = {name: value for name, value in scale.items() if value is not None}
    text = yaml.safe_dump({**STUDY, **(title or {}), "scales": {"cpu": scale}}, sort_keys=False)
    (folder / "study.yaml").write_text(text.replace("BERT", str(town.model("bert"))))
    return folder / "study.yaml"


@pytest.mark.parametrize("name", KEYS)
def test_every_key_of_a_study_makes_points(town: Town, tmp_path: Path, name: str) -> None:
    study = _study(town, tmp_path, KEYS[name])
    planned = outlay(
        *("study", "run", study, "--dry-run", "--prices", tmp_path / "prices.toml", "--store", tmp_path / "store"),
        *("--out", tmp_path / "out", "--json"),
    ).json
    absent = [point for point in planned["points"] if point["status"] == "na"]
    assert planned["n_points"] > len(absent)
    assert all(point["reason"] == "no data here" for point in absent), absent
    assert not (tmp_path / "out").exists()


def test_a_budget_in_dollars_buys_what_it_pays_for(town: Town, tmp_path: Path) -> None:
    """$1.50 at $0.10 a label, the student's training free: 15 labels; beside a teacher the 9 that were asked for."""
    study = _study(town, tmp_path, {})
    dry = ("study", "run", study, "--dry-run", "--prices", tmp_path / "prices.toml", "--store", tmp_path / "store")
    planned = outlay(*dry, "--no-rivals", "--json").json
    assert [(p["strategy"], p["budget_usd"], p["n_labels"]) for p in planned["points"]] == [
        ("annotate", 1.5, 15),
        ("distill", 1.5, 9),
    ]


def test_a_study_says_where_texts_are_cut(town: Town, tmp_path: Path) -> None:
    study = _study(town, tmp_path, {})
    dry = ("study", "run", study, "--dry-run", "--prices", tmp_path / "prices.toml", "--store", tmp_path / "store")
    assert "reads at most 64 tokens: texts are cut at 64" in " ".join(outlay(*dry).out.split())
    notes = outlay(*dry, "--json").json["notes"]
    assert any("texts are cut at 64" in line for line in notes)


def test_a_study_without_anything_to_do_ends_with_1(town: Town, tmp_path: Path) -> None:
    study = _study(town, tmp_path, {"n_initial": None, "budget_usd": "0.01"})
    run = ("study", "run", study, "--prices", tmp_path / "prices.toml", "--store", tmp_path / "store")
    refused(outlay(*run, "--out", tmp_path / "out"), "none of the 2 points can be filled", "raise it to")
    assert not bought(tmp_path)
