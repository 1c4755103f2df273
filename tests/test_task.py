"""Task files: what is accepted, what is refused and in which words, and the published schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import DataError, TaskFileError, UnknownTask
from outlay.example import Example
from outlay.task import SHIPPED, Task, load_task, shipped_tasks, task_schema

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
    assert task.unknown_label == "same"
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
        ("labels", [True, "one"], ["labels.0", "string", "True"]),
        ("metric", "bleu", ["metric", "'accuracy' or 'f1'", "bleu"]),
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
    text = (SHIPPED / "task.schema.json").read_text(encoding="utf-8")
    assert text == json.dumps(task_schema(), indent=2, ensure_ascii=False) + "\n", (
        "write json.dumps(outlay.task.task_schema(), indent=2, ensure_ascii=False) and a newline to task.schema.json"
    )


def test_every_key_of_the_schema_says_what_it_is() -> None:
    schema = task_schema()
    for name, model in {"Task": schema, **schema["$defs"]}.items():
        for key, field in model.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks_fit_the_schema(name: str) -> None:
    schema = json.loads((SHIPPED / "task.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = yaml.safe_load(
        (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").replace("[NO, YES]", "['NO', 'YES']")
    )
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "labls": []}, schema)


@pytest.mark.parametrize(
    ("name", "labels", "metric", "max_source_tokens"),
    [
        ("multipit_id", ("NO", "YES"), "accuracy", 64),
        ("fever", ("REFUTES", "SUPPORTS"), "accuracy", 128),
        ("stanceosaurus", ("Irrelevant", "Discussing", "Supporting", "Refuting", "Querying"), "f1", 128),
    ],
)
def test_shipped_tasks_are_the_published_ones(
    name: str, labels: tuple[str, ...], metric: str, max_source_tokens: int
) -> None:
    """Labels, metric and lengths of Kang et al. 2023, Tables 1, 7 and 8."""
    task = load_task(name)
    assert task.name == name
    assert (task.labels, task.metric) == (labels, metric)
    assert (task.max_source_tokens, task.max_target_tokens) == (max_source_tokens, 8)
    assert task.price_item == f"label/{name}"
    assert task.folder is None
    for _, source in task.sources():
        for file in source.files():
            assert file.sha256
            assert file.rows
            assert file.origin
            assert file.origin.commit


def test_a_task_survives_a_trip_through_json() -> None:
    task = load_task("multipit_id")
    assert Task.model_validate(json.loads(task.model_dump_json())) == task


def test_only_tasks_errors_leave_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="YAML"):
        load_task(file)
