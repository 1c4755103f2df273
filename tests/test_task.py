"""Task files: what is accepted, what is refused and in which words, and the published schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import DataError, TaskFileError, UnknownTask
from outlay.metrics import METRICS
from outlay.settings import TrainSettings, method_options
from outlay.spec import TaskSpec
from outlay.tasks.example import Example
from outlay.tasks.overrides import HyperParameters
from outlay.tasks.task import METRICS_OF, SHIPPED, Metric, Task, load_task, shipped_tasks, task_schema

MINIMAL: dict[str, Any] = {
    "name": "colours",
    "text": "{left} | {right}",
    "labels": ["same", "other"],
    "price_item": "label/colours",
    "data": {
        "train": {"file": "train.jsonl", "target": "label"},
        "dev": {"file": "dev.jsonl", "target": "label"},
        "test": {"file": "test.jsonl", "target": "label"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the minimal task with one key path set, or removed where the value is ``...``."""
    content = copy.deepcopy(MINIMAL)
    here = content
    *above, last = path.split(".")
    for part in above:
        here = here.setdefault(part, {})
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return content


def written(folder: Path, content: Any) -> Path:
    path = folder / "task.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_minimal_task_has_sensible_defaults(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, MINIMAL))
    assert task.segment_names == ("left", "right")
    assert (task.metric, task.dev, task.max_source_tokens, task.max_target_tokens) == ("accuracy", "given", 128, 8)
    assert task.folder == tmp_path.resolve()
    assert task.training.teacher.given() == {}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("labls", ["a"], ["labls", "unknown key", "did you mean labels?"]),
        ("training.teacher.epoch", 3, ["training.teacher.epoch", "did you mean epochs?"]),
        ("data.train.colum", "x", ["data.train.colum", "unknown key", "allowed here are", "target"]),
        ("name", ..., ["name", "required"]),
        ("name", "two words", ["name", "two words"]),
        ("labels", ["one"], ["labels", "at least 2"]),
        ("labels", ["one", "one"], ["labels", "differ"]),
        ("labels", [True, "one"], ["labels.0", "string", "true", "write it in quotes"]),
        ("metric", "bleu", ["metric", "'accuracy', 'f1'", "'bleu'"]),
        ("metric", "qa_f1", ["metric", "qa_f1 does not measure classification", "accuracy or f1"]),
        ("kind", "regression", ["kind", "'classification', 'entities' or 'generation'"]),
        ("kind", "generation", ["labels", "free text", "remove the labels"]),
        ("labels", ..., ["labels", "at least 2, not 0"]),
        ("bertscore", {"model": "org/encoder"}, ["bertscore", "bert_ibleu", "accuracy"]),
        ("training.t5", {}, ["training.t5", "unknown key", "seq2seq"]),
        ("training.seq2seq.teacher.epoch", 3, ["training.seq2seq.teacher.epoch", "did you mean epochs?"]),
        ("training.distil.objective", "token", ["training.distil.objective", "'masked' or 'published'"]),
        ("training.encoder.student.lr", 1.0, ["training.encoder.student.learning_rate", "less than 1"]),
        ("published", {"usd_per_label": 0.1, "n_train": 5}, ["published.source", "required"]),
        ("data.more_train", [{"target": "label"}], ["data.more_train.0", "exactly one"]),
        ("max_source_tokens", 0, ["max_source_tokens", "greater than 0", "not 0"]),
        ("text", "no field", ["no placeholder"]),
        ("segments", ["middle"], ["segments", "left, right, text"]),
        ("segments", ["left", "right", "text"], ["segments", "one or two"]),
        ("data.test.target", ..., ["data.test", "target"]),
        ("data.train.file", ..., ["data.train", "exactly one"]),
        ("data.train.hub", {"name": "a", "split": "b"}, ["data.train", "exactly one"]),
        ("data.train.sha256", "abc", ["data.train.sha256", "abc"]),
        ("data.train.template", "{left} {right}", ["data.train", "source"]),
        ("data.train.fields", {"middle": "m"}, ["data.train.fields", "middle", "left, right"]),
        ("data.dev", ..., ["dev: given", "data.dev"]),
        ("dev", "carved", ["dev: carved", "data.dev"]),
        ("n_dev", 5, ["n_dev", "bought"]),
        ("dev_fraction", 0.1, ["dev_fraction", "carved"]),
        ("pool", [{"name": "p", "file": "p.jsonl", "target": "label"}], ["pool.0.target", "unlabelled"]),
        ("pool", [{"name": "p", "split": "train", "file": "p.jsonl"}], ["pool.0", "exactly one"]),
        ("pool", [{"name": "p", "split": "test"}], ["pool.0.split", "test"]),
        ("pool", [{"name": "p", "split": "train"}] * 2, ["pool", "different names"]),
        ("pool", [{"name": "p", "split": "train", "fields": {"left": {"colum": "x"}}}], ["did you mean column?"]),
    ],
)
def test_a_wrong_key_gets_one_clear_line(tmp_path: Path, path: str, value: Any, words: list[str]) -> None:
    file = written(tmp_path, changed(path, value))
    with pytest.raises(TaskFileError) as caught:
        load_task(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


ENTITIES: dict[str, Any] = {**MINIMAL, "kind": "entities", "labels": ["Amount", "Reagent"]}
GENERATION: dict[str, Any] = {key: value for key, value in MINIMAL.items() if key != "labels"} | {"kind": "generation"}


def test_what_is_not_said_follows_from_the_kind() -> None:
    tasks = [Task.model_validate(content) for content in (MINIMAL, ENTITIES, GENERATION)]
    assert [(task.metric, task.max_target_tokens) for task in tasks] == [
        ("accuracy", 8),
        ("entity_f1", 128),
        ("qa_f1", 32),
    ]
    assert [task.segment_names for task in tasks] == [("left", "right"), ("text",), ("left", "right")]
    assert Task.model_validate({**GENERATION, "metric": "bert_ibleu", "max_target_tokens": 5}).max_target_tokens == 5
    assert tasks[1].form == TaskSpec("entities", ("Amount", "Reagent"), 128, 128, "")
    assert Task.model_validate({**GENERATION, "prefix": "ask: "}).form == TaskSpec("generation", (), 128, 32, "ask: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**ENTITIES, "labels": []}, ["at least 1, not 0"]),
        ({**ENTITIES, "labels": ["Amount", "AMOUNT"]}, ["differ in more than case"]),
        ({**ENTITIES, "labels": ["A[m]ount"]}, ["brackets"]),
        ({**ENTITIES, "metric": "f1"}, ["f1 does not measure entities", "entity_f1"]),
        ({**ENTITIES, "segments": ["left"]}, ["segments", "[text]"]),
        ({**GENERATION, "metric": "accuracy"}, ["qa_f1 or bert_ibleu"]),
        ({**GENERATION, "bertscore": {"model": "org/encoder"}}, ["bert_ibleu", "qa_f1"]),
        ({**GENERATION, "metric": "bert_ibleu", "bertscore": {"layer": 3}}, ["bertscore.model", "required"]),
    ],
)
def test_what_does_not_go_with_the_kind_is_refused(tmp_path: Path, content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TaskFileError) as caught:
        load_task(written(tmp_path, content))
    for word in words:
        assert word in str(caught.value)


def test_every_metric_of_a_task_can_be_computed() -> None:
    assert sorted(metric for metrics in METRICS_OF.values() for metric in metrics) == sorted(METRICS)
    assert sorted(METRICS) == sorted(get_args(Metric))


def test_hyper_parameters_of_a_family_win() -> None:
    training = {
        "student": {"epochs": 3, "dropout": 0.0},
        "seq2seq": {"student": {"epochs": 50, "lr": 0.001}, "distil": {"objective": "published", "js_beta": 0.2}},
    }
    task = Task.model_validate({**MINIMAL, "training": training})
    assert task.training.settings_for("encoder", "student") == {"epochs": 3, "dropout": 0.0}
    wanted = {"epochs": 50, "learning_rate": 0.001, "dropout": 0.0}
    assert task.training.settings_for("seq2seq", "student") == wanted
    assert task.training.settings_for("seq2seq", "distil") == {"objective": "published", "js_beta": 0.2}
    assert task.training.settings_for("causal", "teacher") == {}


def test_every_hyper_parameter_is_a_training_setting() -> None:
    """What a task may set, the settings take under the names `settings_for` gives: no key leads nowhere."""
    content: dict[str, Any] = {
        **{"epochs": 7, "learning_rate": 0.01, "batch_size": 5, "warmup_fraction": 0.2, "weight_decay": 0.3},
        "max_grad_norm": 2.0,
        **{"patience": 3, "dropout": 0.1, "precision": "fp32", "optimizer": "adafactor", "micro_batch_size": 2},
        **{"gradient_checkpointing": True, "eval_steps": 11, "temperature": 2.5, "objective": "published"},
        **{"divergence": "js", "js_beta": 0.3, "gold_weight": 0.4, "batch_tokens": 640, "eval_share": 0.04},
        **{
            "compile": True,
            "method": "lora",
            "lora_rank": 4,
            "lora_alpha": 9.5,
            "tune": "ia3",
            "pooling": "first",
            "pair": "joined",
        },
        **{"probe_folds": 3, "probe_strengths": 4, "probe_choose_by": "metric", "probe_class_weight": "balanced"},
    }
    assert set(content) == set(HyperParameters.model_fields)
    task = Task.model_validate({**MINIMAL, "training": {"causal": {"distil": content}}})
    given = task.training.settings_for("causal", "distil")
    changed, options = TrainSettings(1, 1, 0.5).changed(given), method_options()
    for name, value in given.items():
        kind = options[name][0] if name in options else None
        own = name if kind is None else name.removeprefix(kind.option_prefix())
        assert getattr(changed if kind is None else changed.of_method(kind.method), own) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [1", "line 1"), ("- a", "list"), ("", "NoneType"), ("a: 1\na: 2", "given twice")],
)
def test_text_that_is_no_task_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(TaskFileError, match=reason) as caught:
        load_task(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_and_yes_stay_words(tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL).replace("labels:\n- same\n- other", "labels: [NO, yes, on, 0]\nsymmetric: true")
    task = load_task(written(tmp_path, text))
    assert task.labels == ("NO", "yes", "on", "0")
    assert task.symmetric is True


@pytest.mark.parametrize("name", ["multipit", "no/such.yaml", "missing.yml"])
def test_an_unknown_task_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        load_task(name)
    for shipped in shipped_tasks():
        assert shipped in str(caught.value)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UnknownTask, match="did you mean fever"):
        load_task("fevr")


def test_segments_may_be_the_whole_text(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, changed("segments", ["text"])))
    one = Example("", (("left", "a"), ("right", "b")), "a | b", None, "x:1")
    assert task.segments_of(one) == ("a | b",)
    three = load_task(written(tmp_path, changed("text", "{a} {b} {c}")))
    assert three.segment_names == ("text",)


@given(n=st.integers(0, 10_000), n_dev=st.none() | st.integers(1, 500), fraction=st.floats(0.001, 0.999))
def test_carving_leaves_labels_on_both_sides(n: int, n_dev: int | None, fraction: float) -> None:
    content = changed("data.dev", ...) | {"dev": "carved"}
    content |= {"n_dev": n_dev} if n_dev else {"dev_fraction": fraction}
    n_carved = Task.model_validate(content).n_carved(n)
    if n < 2:
        assert n_carved == 0
    else:
        assert 1 <= n_carved < n
        assert n_carved <= (n_dev or n * fraction + 1)
    assert Task.model_validate(MINIMAL).n_carved(n) == 0


def test_values_are_frozen() -> None:
    task = load_task("fever")
    with pytest.raises(ValueError, match="frozen"):
        task.name = "other"  # type: ignore[misc]


def test_the_published_schema_is_current() -> None:
    text = (SHIPPED.parent / "task.schema.json").read_text(encoding="utf-8")
    assert text == json.dumps(task_schema(), indent=2, ensure_ascii=False) + "\n", (
        "write json.dumps(outlay.tasks.task.task_schema(), indent=2, ensure_ascii=False) and a newline to task.schema.json"
    )


def test_every_key_of_the_schema_says_what_it_is() -> None:
    schema = task_schema()
    for name, model in {"Task": schema, **schema["$defs"]}.items():
        for key, field in model.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks_fit_the_schema(name: str) -> None:
    schema = json.loads((SHIPPED.parent / "task.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = yaml.safe_load(
        (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").replace("[NO, YES]", "['NO', 'YES']")
    )
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "labls": []}, schema)


@pytest.mark.parametrize("name", shipped_tasks())
def test_a_task_survives_a_trip_through_json(name: str) -> None:
    task = load_task(name)
    assert Task.model_validate(json.loads(task.model_dump_json())) == task


def test_only_tasks_errors_leave_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="YAML"):
        load_task(file)
