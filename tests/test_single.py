"""Single steps as functions: rows from files and tasks, their output, and what the five steps leave behind."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import ArtifactDamaged, DataError, LabelError, MissingData, OutlayError, UsageError
from outlay.metrics import score
from outlay.models.shape import flops_infer, flops_train, shape_of
from outlay.settings import TeachSettings
from outlay.spec import TaskSpec, cut_lines
from outlay.standalone.evaluator import MetricAsked, dev_score, scorer_of
from outlay.standalone.inference import InferenceOptions, Teaching, evaluate, predict, teach
from outlay.standalone.inputs import DataReader, TaskRow, sources_of
from outlay.standalone.output_dir import OutputDir
from outlay.standalone.prediction_file import evaluate_file
from outlay.standalone.request import Data
from outlay.standalone.runtime import RuntimeOptions, StepReport
from outlay.standalone.targets_dir import TargetsFolder
from outlay.standalone.training import distil, finetune
from outlay.train.progress import TokenCounter
from tests.listeners import Silent
from tests.steps_world import KINDS, StepsWorld, rows, tree, write_rows

RUNNING = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tagger(world: StepsWorld) -> Path:
    """An encoder fine-tuned on entities."""
    out = world.root / "tagger"
    finetune(world.recipe("entities", "bert", out, file=world.file("entities", "train")), Silent())
    return out


@pytest.fixture(scope="module")
def writer(world: StepsWorld) -> Path:
    """A T5 fine-tuned on entities."""
    out = world.root / "writer"
    finetune(world.recipe("entities", "t5", out, file=world.file("entities", "train")), Silent())
    return out


def answering(world: StepsWorld, model: Path, out: Path, split: str, **more: Any) -> InferenceOptions:
    data = Data(file=world.file("entities", split))
    return InferenceOptions(model, out, data, precision="fp32", runtime=RUNNING, **more)


def one_line_with(error: Exception, *says: str) -> None:
    """The error is one line that has all of these pieces."""
    assert "\n" not in str(error)
    for words in says:
        assert words in str(error)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv"])
def test_a_file_reads_the_same_in_every_form(tmp_path: Path, suffix: str) -> None:
    found = [{"question": f"what, is “{i}”?", "answer": f"it is\t{i}"} for i in range(7)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "tsv":
        found = [{name: value.replace("\t", " ") for name, value in each.items()} for each in found]
        lines = ["question\tanswer", *(f"{each['question']}\t{each['answer']}" for each in found)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        write_rows(path, found)
    asked = Data(source_column="question", target_column="answer")
    read = DataReader(asked).file(path, n=5, needs_target=True)
    assert [(row.text, row.gold) for row in read] == [(e["question"], e["answer"]) for e in found[:5]]
    assert read[2].segments == (read[2].text,)


def test_a_json_file_of_objects_one_a_line_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    path.write_text('{"source": "a", "target": "b"}\n\n{"source": "c", "target": "d"}\n')
    assert [row.text for row in DataReader(Data()).file(path, n=None, needs_target=True)] == ["a", "c"]


def test_gold_answers_may_begin_behind_the_first_row(tmp_path: Path) -> None:
    """A key that a row of JSON lacks is a value that is missing, in the first row as in any other."""
    path = write_rows(tmp_path / "rows.jsonl", [{"source": "a"}, {"source": "b", "target": "c"}])
    read = DataReader(Data()).file(path, n=None, needs_target=True)
    assert [(row.text, row.gold) for row in read] == [("a", None), ("b", "c")]
    with pytest.raises(LabelError, match=r"\(row 1\)"):
        DataReader(Data()).checked(read, FORMS["generation"])


@pytest.mark.parametrize(
    ("content", "data", "error", "says"),
    [
        ("", Data(), MissingData, ("rows.json",)),
        ("[]", Data(), MissingData, ("rows.json",)),
        ("[1]", Data(), DataError, ("rows.json:1", "int")),
        ("[{", Data(), MissingData, ("rows.json",)),
        ("[{}, 7 8]", Data(), DataError, ("rows.json", "JSON")),
        ('[{"text": "a", "target": "b"}]', Data(), DataError, ("'source'", "text, target", "--source-column")),
        ('[{"source": "a", "label": "b"}]', Data(), DataError, ("'target'", "source, label", "--target-column")),
        ('[{"source": "a", "target": "b"}]', Data(target_column="gold"), DataError, ("'gold'", "--target-column")),
        ('[{"source": "a", "target": "b"}, {"target": "b"}]', Data(), DataError, ("rows.json:2", "'source'")),
        ('[{"source": " ", "target": "b"}]', Data(), DataError, ("(row 1)", "remove the row")),
        ('[{"source": ["a"], "target": "b"}]', Data(), DataError, ("rows.json:1", "'source'", "list")),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: str, data: Data, error: type[OutlayError], says: tuple[str, ...]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(error) as caught:
        DataReader(data).file(path, n=None, needs_target=True)
    one_line_with(caught.value, *says)


FORMS = {
    "classification": TaskSpec("classification", ("NO", "YES"), 8, 8),
    "entities": TaskSpec("entities", ("Action", "Reagent"), 8, 8),
    "generation": TaskSpec("generation", (), 8, 8),
}


@pytest.mark.parametrize(
    ("kind", "gold", "says"),
    [
        ("classification", "", ("target",)),
        ("classification", "maybe", ("'maybe'", "'NO', 'YES'", "--labels")),
        ("generation", " ", ("target",)),
        ("generation", None, ("target",)),
        ("entities", None, ("target",)),
        ("entities", "mix [Action] salt", ("'salt'", "Action, Reagent")),
    ],
)
def test_a_gold_answer_that_cannot_be_learnt_is_refused(kind: str, gold: str | None, says: tuple[str, ...]) -> None:
    with pytest.raises(LabelError) as caught:
        DataReader(Data()).checked([TaskRow("a", ("a",), gold, "rows.json:3 (row 3)")], FORMS[kind])
    one_line_with(caught.value, "rows.json:3 (row 3)", *says)


def test_a_text_without_entities_has_an_empty_answer() -> None:
    row = TaskRow("a", ("a",), "", "rows.json:1")
    assert DataReader(Data()).checked([row], FORMS["entities"]) == [row]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Data(kind="ranking"), ("--kind 'ranking'", "classification, entities, generation")),
        (Data(), ("classification", "none", "--labels")),
        (Data(labels=("A",)), ("classification", "and 1 ", "--labels")),
        (Data(labels=("A", "A")), ("--labels", "'A', 'A'")),
        (Data(kind="entities"), ("entities", "none", "--labels")),
        (Data(kind="generation", labels=("A",)), ("generation", "--labels gives 1", "leave them out")),
        (Data(kind="generation", max_source_tokens=0), ("--max-source-tokens is 0", "at least 1")),
        (Data(kind="generation", max_target_tokens=-1), ("--max-target-tokens is -1", "at least 1")),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(data: Data, says: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        DataReader(data).form()
    one_line_with(caught.value, *says)


def test_the_question_is_the_models_then_the_tasks_then_a_default() -> None:
    saved = TaskSpec("classification", ("NO", "YES"), 64, 4, "ask: ")
    assert DataReader(Data()).form(saved) == saved
    assert DataReader(Data(prefix="", max_source_tokens=32)).form(saved) == replace(
        saved, prefix="", max_source_tokens=32
    )
    shipped = DataReader(Data(task="fever"))
    assert shipped.task is not None
    assert shipped.form() == shipped.task.form
    assert DataReader(Data(kind="generation")).form() == TaskSpec("generation", (), 128, 32)
    for wrong in (Data(task="fever"), Data(kind="entities"), Data(labels=("YES", "NO"))):
        with pytest.raises(UsageError):
            DataReader(wrong).form(saved)


def test_an_encoder_that_classifies_reads_segments_and_everything_else_the_text() -> None:
    row = TaskRow("a and b", ("a", "b"), None, "")
    assert sources_of([row], "encoder", "classification") == [("a", "b")]
    assert sources_of([row], "encoder", "entities") == [("a and b",)]
    assert sources_of([row], "seq2seq", "classification") == [("a and b",)]
    assert TaskRow.from_json(row.to_json(), "") == row


TASK = """
name: tones
text: "{first} / {second}"
labels: [bad, good]
price_item: label/multipit_id
data:
  train: {file: train.jsonl, target: label}
  dev: {file: dev.jsonl, target: label}
  test: {file: test.jsonl, target: label}
pool:
  - {name: train, split: train}
  - {name: more, file: pool.jsonl}
"""


def test_a_task_gives_its_rows_in_the_seeds_order_and_the_pool_the_labels_that_are_known(tmp_path: Path) -> None:
    rng = random.Random(5)
    for split, n in (("train", 20), ("dev", 5), ("test", 6), ("pool", 9)):
        found = [{"first": f"{split} {i}", "second": "x", "label": rng.choice(["bad", "good"])} for i in range(n)]
        write_rows(tmp_path / f"{split}.jsonl", found)
    (tmp_path / "task.yaml").write_text(TASK)
    inputs = DataReader(Data(task=str(tmp_path / "task.yaml")))
    train = inputs.split("train", n=None, seed=3)
    assert inputs.split("train", n=7, seed=3) == train[:7]
    assert inputs.split("train", n=None, seed=4) != train
    assert [row.text for row in inputs.split("test", n=2, seed=3)] == ["test 0 / x", "test 1 / x"]
    assert train[0].segments == tuple(train[0].text.split(" / "))
    pool = inputs.split("pool", n=None, seed=3, n_gold=7)
    assert len(pool) == 29
    known = {row.text: row.gold for row in train[:7]}
    assert {row.text: row.gold for row in pool if row.gold is not None} == known
    # A file of the same form is read with the task's template, for a model that reads segments.
    own = write_rows(tmp_path / "own.jsonl", [{"source": "a / b", "target": "bad"}, {"source": "a", "target": "bad"}])
    read = inputs.file(own, n=None, needs_target=True)
    assert [row.segments for row in read] == [("a", "b"), ("a",)]
    with pytest.raises(OutlayError, match=r"\(row 2\).* --task"):
        sources_of(read, "encoder", "classification")
    for name, says in (("validation", "--split 'validation'.* train, dev, test, pool"), ("train", r"\b0 rows\b.*\b1$")):
        with pytest.raises(UsageError, match=says):
            inputs.split(name, n=0, seed=0)


# --- an output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_folder", [True, False])
def test_an_output_belongs_to_one_request(tmp_path: Path, is_folder: bool) -> None:
    out = tmp_path / "deep" / "out"
    output = OutputDir.folder(out) if is_folder else OutputDir.file(out)
    one, two = {"a": 1, "b": {"c": (2, 3)}}, {"a": 1, "b": {"c": (2, 4)}}
    assert output.check(one, overwrite=False) is None
    output.open(one)
    # A request that failed at once stands in nobody's way.
    assert output.check(two, overwrite=False) is None
    output.open(two)
    output.open(one)
    result = out / "model" if is_folder else out
    with output.lock():
        output.write(result, b"model")
        with pytest.raises(UsageError, match=r"--out .*deep/out"), output.lock():
            pass
        output.finish({"done": True})
    assert not output.work.exists()
    assert output.check(one, overwrite=False) == {"done": True}
    assert output.check(one, overwrite=True) == {"done": True}
    with pytest.raises(UsageError, match=r"\bb\.c\b.* --overwrite"):
        output.check(two, overwrite=False)
    assert output.check(two, overwrite=True) is None
    output.open(two)
    assert not result.exists()
    assert output.check(two, overwrite=False) is None


def test_what_no_step_wrote_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for output in (OutputDir.folder(tmp_path), OutputDir.file(tmp_path / "thesis.txt")):
        with pytest.raises(UsageError, match=r"another --out$"):
            output.check({}, overwrite=True)
    for output, says in (
        (OutputDir.folder(tmp_path / "thesis.txt"), "thesis.txt .* name a folder"),
        (OutputDir.file(tmp_path), "name a file"),
    ):
        with pytest.raises(UsageError, match=says):
            output.check({}, overwrite=True)


def test_a_count_goes_on_where_it_was() -> None:
    count = TokenCounter()
    assert count.may_train(10**12)
    count.trained(5)
    count.inferred(7)
    other = TokenCounter()
    other.restore({**count.state(), "seconds": 100.0})
    assert (other.n_trained, other.n_inferred) == (5, 7)
    assert other.seconds >= 100.0


def test_a_count_hands_on_what_a_meter_limits() -> None:
    class Limited(TokenCounter):
        def may_train(self, n_tokens: int) -> bool:
            return self.n_trained + n_tokens <= 10

    meter = Limited()
    count = TokenCounter(meter)
    assert count.may_train(10)
    count.trained(8)
    count.inferred(3)
    assert not count.may_train(3)
    assert (count.n_trained, count.n_inferred) == (meter.n_trained, meter.n_inferred) == (8, 3)
    count.restore({**count.state(), "trained": 1})
    assert meter.n_trained == 1


def test_what_was_cut_is_said_in_words() -> None:
    form = replace(FORMS["generation"], max_source_tokens=128)
    assert cut_lines(form, 1000, n_truncated=37) == ["37 of 1,000 rows were longer than 128 tokens and were cut"]
    several = cut_lines(FORMS["generation"], 2, n_truncated=1, n_answers_cut=2, n_unaligned=3)
    assert [line.split()[0] for line in several] == ["1", "2", "3"]
    assert cut_lines(form, 2) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"threads": 0}, "--threads is 0"),
        ({"save_steps": 0}, "--save-steps is 0"),
        ({"save_seconds": -1.0}, "--save-seconds is -1.0"),
        ({"device_map": "gpu7"}, "--device-map is gpu7"),
    ],
)
def test_a_way_to_run_that_makes_no_sense_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RuntimeOptions(**wrong)
    with pytest.raises(UsageError, match="add --processes 2"):
        RuntimeOptions(fsdp=True).check()


# --- steps -----------------------------------------------------------------------------------------------------------


def test_finetune_leaves_a_model_its_history_and_what_it_took(world: StepsWorld, tmp_path: Path) -> None:
    train = rows("entities", 9, seed=1)
    train[4] = {"source": "mix salt", "target": "mix [Action] gold [Reagent]"}
    train[5] = {"source": " ".join(["water"] * 30), "target": ""}
    out, file = tmp_path / "out", write_rows(tmp_path / "train.jsonl", train)
    recipe = world.recipe("entities", "bert", out, file=file)
    outcome = finetune(recipe, Silent())
    assert outcome.counts == [
        "1 of 9 rows was longer than 24 tokens and was cut",
        "1 entity of 9 rows could not be found in its text and was left out",
    ]
    shape = shape_of(str(out))
    per_token = flops_train(shape, 1, 5), flops_infer(shape, 1, 5)
    expected = per_token[0] * outcome.n_tokens_trained + per_token[1] * outcome.n_tokens_inferred
    assert outcome.flops == expected > 0
    training = json.loads((out / "training.json").read_text())
    assert [entry["epoch"] for entry in training["history"]] == [0, 1]
    assert training["dev"] == max(entry["dev"] for entry in training["history"]) == outcome.facts["dev"]
    assert not (out / ".work").exists()
    before = tree(out)
    again = finetune(recipe, Silent())
    assert again == replace(outcome, is_old=True)
    assert tree(out) == before
    with pytest.raises(UsageError, match=r"settings\.epochs is 2 there, 3 here"):
        finetune(replace(recipe, overrides={**recipe.overrides, "epochs": 3}), Silent())


def test_a_task_may_leave_the_choice_of_its_method_open(world: StepsWorld, tmp_path: Path) -> None:
    for split in ("train", "dev", "test", "pool"):
        found = [
            {"first": f"{split} {i} {each['source']}", "second": "x", "label": each["target"]}
            for i, each in enumerate(rows("classification", 9))
        ]
        write_rows(tmp_path / f"{split}.jsonl", found)
    task = tmp_path / "task.yaml"
    task.write_text(f"{TASK}training:\n  encoder:\n    student: {{method: auto}}\n")
    recipe = world.recipe("classification", "bert", tmp_path / "out")
    by_task = finetune(replace(recipe, data=Data(task=str(task))), Silent())
    task.write_text(TASK)
    asked = {**recipe.overrides, "method": "auto"}
    by_user = finetune(replace(recipe, out=tmp_path / "asked", data=Data(task=str(task)), overrides=asked), Silent())
    assert by_task.counts == by_user.counts != []
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "asked/model.safetensors").read_bytes()


def test_a_probe_is_chosen_by_the_metric_with_and_without_a_dev_set(world: StepsWorld, tmp_path: Path) -> None:
    train = rows("classification", 40, seed=2)
    rare = [each for each in train if each["target"] == "bad"][:6]
    few = write_rows(tmp_path / "few.jsonl", [*rare, *(each for each in train if each["target"] == "good")])
    heads = {}
    for metric in ("f1", "accuracy"):
        for dev_file in (world.file("classification", "dev"), None):
            recipe = world.recipe(
                "classification", "bert", tmp_path / f"{metric} {dev_file is None}", file=few, method="probe"
            )
            data = replace(recipe.data, dev_file=dev_file)
            finetune(replace(recipe, data=data, metric=MetricAsked(metric)), Silent())
            heads[metric, dev_file is None] = (recipe.out / "head.safetensors").read_bytes()
    assert heads["f1", True] == heads["f1", False] != heads["accuracy", False] == heads["accuracy", True]


def test_the_best_dev_score_is_that_of_the_model_that_is_left(world: StepsWorld, tagger: Path, tmp_path: Path) -> None:
    outcome = evaluate(answering(world, tagger, tmp_path / "out", "dev"), MetricAsked(), Silent())
    training = json.loads((tagger / "training.json").read_text())
    assert outcome.facts["scores"][training["dev_score"]]["value"] == pytest.approx(training["dev"])


def test_evaluate_scores_what_was_predicted(world: StepsWorld, tagger: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = evaluate(answering(world, tagger, out, "train", block_rows=5), MetricAsked(), Silent())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in world.file("entities", "train").read_text().splitlines()]
    assert [(line["source"], line["gold"]) for line in lines] == [(e["source"], e["target"]) for e in given]
    readings = score("entity_f1", [e["prediction"] for e in lines], [e["gold"] for e in lines], ["Action", "Reagent"])
    expected = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in readings.items()}
    assert json.loads((out / "scores.json").read_text())["scores"] == expected == outcome.facts["scores"]
    asked = Data(**KINDS["entities"])
    other = evaluate_file(out / "predictions.jsonl", tmp_path / "other", asked, MetricAsked())
    assert other.facts["scores"] == expected
    whole = tmp_path / "whole.jsonl"
    predict(answering(world, tagger, whole, "train"), Silent())
    assert whole.read_bytes() == (out / "predictions.jsonl").read_bytes()


def test_a_teachers_blocks_are_its_targets_row_by_row(world: StepsWorld, writer: Path, tmp_path: Path) -> None:
    from outlay.train import api as train_api

    out, pool = tmp_path / "out", [json.loads(line) for line in world.file("entities", "pool").read_text().splitlines()]
    asked = answering(world, writer, out, "pool", block_rows=11)
    outcome = teach(asked, Teaching(student=world.model("small"), settings=TeachSettings(max_logits=5)), Silent())
    assert outcome.facts["kind"] == "tokens"
    assert sorted(path.name for path in out.glob("*.safetensors")) == [f"targets-0000{i}.safetensors" for i in range(3)]
    stored = TargetsFolder.open(out)
    assert [row.text for row in stored.rows()] == [each["source"] for each in pool]
    count = TokenCounter()
    # `small` pads its vocabulary by 3 rows, which the teacher does not have.
    n_tokens = json.loads(Path(world.model("t5"), "config.json").read_text())["vocab_size"]
    direct = train_api.teach(
        writer,
        [(each["source"],) for each in pool[11:22]],
        target="tokens",
        settings=TeachSettings(max_logits=5),
        precision="fp32",
        meter=count,
        vocab_size=n_tokens,
    )
    assert (out / "targets-00001.safetensors").read_bytes() == direct.to_bytes()
    whole = stored.load(29)
    assert whole.vocab_size == n_tokens
    assert stored.load(14).to_bytes() == whole.select(range(14)).to_bytes()
    answers = [json.loads(line)["prediction"] for line in (out / "answers.jsonl").read_text().splitlines()]
    assert answers == list(whole.answers)
    assert 0 < count.n_inferred < outcome.n_tokens_inferred


@pytest.mark.parametrize(
    ("teacher", "student", "base", "kind"),
    [("tagger", "cut:1", "bert", "tags"), ("writer", "bert", None, "text"), ("tagger", "small", None, "text")],
)
def test_what_is_written_depends_on_who_is_taught(
    world: StepsWorld, request: pytest.FixtureRequest, tmp_path: Path, teacher: str, student: str, base: str, kind: str
) -> None:
    model: Path = request.getfixturevalue(teacher)
    student = student if base else world.model(student)
    named = world.model(base) if base else None
    asked = answering(world, model, tmp_path / "targets", "pool")
    outcome = teach(asked, Teaching(student=student, base=named), Silent())
    assert outcome.facts["kind"] == kind
    recipe = world.recipe("entities", student, tmp_path / "student", temperature=2.0)
    recipe = replace(recipe, model=student, base=named, role="distil")
    made = distil(replace(recipe, data=replace(recipe.data, max_rows=20)), tmp_path / "targets", Silent())
    assert made.facts["n_rows"] == 20
    assert (tmp_path / "student" / "outlay.json").exists()


def test_the_temperature_of_targets_and_gold_answers_reach_the_student(
    world: StepsWorld, writer: Path, tmp_path: Path
) -> None:
    targets = tmp_path / "targets"
    teach(answering(world, writer, targets, "train"), Teaching(student=world.model("small")), Silent())
    assert all(row.gold is not None for row in TargetsFolder.open(targets).rows())
    made = {}
    for name, more in (("plain", {}), ("gold", {"gold_weight": 0.5}), ("reverse", {"divergence": "reverse_kl"})):
        recipe = world.recipe("entities", "small", tmp_path / name, temperature=2.0, **more)
        distil(replace(recipe, role="distil"), targets, Silent())
        made[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert len(set(made.values())) == 3


def test_targets_that_do_not_fit_are_refused(world: StepsWorld, tagger: Path, writer: Path, tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    teach(answering(world, writer, targets, "pool"), Teaching(student=world.model("small")), Silent())

    def refused(*says: str, model: str = "small", **overrides: Any) -> None:
        recipe = replace(
            world.recipe("entities", model, tmp_path / "no", **{"temperature": 2.0, **overrides}), role="distil"
        )
        with pytest.raises(OutlayError) as caught:
            distil(recipe, targets, Silent())
        one_line_with(caught.value, *says)
        assert not (tmp_path / "no" / "model.safetensors").exists()

    refused(world.model("bert"), "--student", model="bert")
    refused("--objective published", "--keep-padding --max-logits 0", objective="published")
    refused("--gold-weight", str(targets), gold_weight=0.5)
    refused("--temperature is 3", "1, 2, 4", "--temperature 1", temperature=3.0)
    block = targets / "targets-00000.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactDamaged, match=r"targets-00000\.safetensors .*sha256.* teach again$"):
        TargetsFolder.open(targets).load(29)
    (targets / "targets.json").unlink()
    refused(str(targets), "targets.json", "again")
    block.unlink()
    refused(str(targets), "targets.json", "`outlay teach`")
    with pytest.raises(UsageError, match=r"--student.* --target$"):
        teach(answering(world, tagger, tmp_path / "t", "pool"), Teaching(), Silent())
    with pytest.raises(UsageError, match=r"--target 'words'.* classes, tags, tokens, text$"):
        teach(answering(world, tagger, tmp_path / "t", "pool"), Teaching(target="words"), Silent())
    settings = TeachSettings(keep_padding=True)
    with pytest.raises(UsageError, match=r"--keep-padding .*\btags\b"):
        teach(answering(world, tagger, tmp_path / "t", "pool"), Teaching(target="tags", settings=settings), Silent())


def test_a_finished_result_is_found_again_and_a_damaged_part_is_not_taken_for_one(
    world: StepsWorld, tagger: Path, tmp_path: Path
) -> None:
    asked = answering(world, tagger, tmp_path / "said.jsonl", "pool", block_rows=10)
    first = predict(asked, Silent())
    assert isinstance(first, StepReport)
    assert not first.is_old
    assert predict(asked, Silent()).is_old
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "said.jsonl",
        "said.jsonl.request.json",
        "said.jsonl.summary.json",
    ]
    (tmp_path / "said.jsonl").unlink()
    again = predict(asked, Silent())
    assert not again.is_old
    assert (again.n_tokens_inferred, again.facts) == (first.n_tokens_inferred, first.facts)


class _Fixed:
    """Stands in for BERTScore."""

    def __init__(self, ref: str, *, layer: int | None, idf: bool) -> None:
        self.about = (ref, layer, idf)

    def f1(self, predictions: Sequence[str], sources: Sequence[str]) -> list[float]:
        assert "" not in predictions
        return [0.5 for _ in predictions]


def test_bert_ibleu_needs_an_encoder_and_hands_it_no_empty_prediction(
    world: StepsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlay.metrics.bertscore.BertScore", _Fixed)
    form = FORMS["generation"]
    with pytest.raises(UsageError, match="--metric-model"):
        scorer_of(MetricAsked("bert_ibleu"), form, None)
    with pytest.raises(UsageError, match=r"--metric 'accuracy' .*generation.* qa_f1, bert_ibleu$"):
        scorer_of(MetricAsked("accuracy"), form, None)
    scorer = scorer_of(MetricAsked("bert_ibleu", world.model("bert"), layer=1), form, None)
    found = [TaskRow("mix the salt", ("mix the salt",), "x", ""), TaskRow("heat the acid", ("heat the acid",), "x", "")]
    texts = [row.text for row in found]
    readings = scorer.score(["stir", ""], ["x", "x"], texts)
    expected = score(
        "bert_ibleu",
        ["stir", ""],
        ["x", "x"],
        (),
        sources=texts,
        similarities=[0.5, 0.5],
    )
    assert readings == expected
    assert dev_score(scorer, ["stir", ""], found) == expected["bert_ibleu/published"].value


def test_a_metric_names_the_kind_of_the_predictions_it_scores(tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text('{"source": "who?", "prediction": "The Beatles", "target": "beatles"}\n')
    outcome = evaluate_file(file, tmp_path / "out", Data(), MetricAsked(name="qa_f1"))
    assert outcome.facts["scores"]["f1/published"]["value"] == 100.0
    with pytest.raises(UsageError, match=r"classification .*--labels"):
        evaluate_file(file, tmp_path / "out", Data(), MetricAsked(name="accuracy"))
