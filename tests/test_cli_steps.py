"""The single steps as commands: a person's way from labelled rows to a scored student, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import UsageError
from outlay.standalone.launch import needs_launch
from tests.steps_world import StepsWorld, tree, write_rows
from tests.test_cli import Ran, outlay, refused

QUICK = ("--epochs", 2, "--batch-size", 8, "--lr", 3e-3, "--precision", "fp32", "--threads", 1, "--quiet")
TAGS = ("--kind", "entities", "--labels", "Action, Reagent", "--max-source-tokens", 24, "--max-target-tokens", 16)
ANSWER = ("--precision", "fp32", "--threads", 1, "--quiet")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def teacher(world: StepsWorld) -> Path:
    out = world.root / "teacher"
    ran = finetune(world, out, "--dev-file", world.file("entities", "dev"))
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="module")
def targets(world: StepsWorld, teacher: Path) -> Path:
    out = world.root / "targets"
    ran = teach(world, teacher, out)
    assert ran.code == 0, ran.err
    return out


def finetune(world: StepsWorld, out: Path, *more: object, model: str = "t5", train: Path | None = None) -> Ran:
    file = train or world.file("entities", "train")
    return outlay("finetune", "--model", world.model(model), "--train-file", file, *TAGS, *QUICK, "--out", out, *more)


def teach(world: StepsWorld, teacher: Path, out: Path, *more: object) -> Ran:
    pool, student = world.file("entities", "pool"), world.model("small")
    return outlay("teach", teacher, "--student", student, "--file", pool, *ANSWER, "--out", out, *more)


# --- the way through -------------------------------------------------------------------------------------------------


def test_from_labels_to_a_scored_student(world: StepsWorld, teacher: Path, targets: Path, tmp_path: Path) -> None:
    dev = world.file("entities", "dev")
    small = ("--student", world.model("small"), "--dev-file", dev, *QUICK, "--temperature", 2)
    ran = outlay("distill", targets, *small, "--divergence", "js", "--js-beta", 0.3, "--out", tmp_path / "student")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"model: {tmp_path / 'student'}"
    assert lines[1] == "rows: 29, 13 dev rows"
    assert lines[2].startswith("best micro_f1/strict on dev: ")
    assert lines[-1].startswith("compute: ")
    assert "FLOPs" in lines[-1]
    settings = json.loads((tmp_path / "student" / "request.json").read_text())["settings"]
    assert (settings["divergence"], settings["js_beta"], settings["learning_rate"]) == ("js", 0.3, 3e-3)

    said = outlay("predict", teacher, "--file", dev, *ANSWER, "--out", tmp_path / "said.jsonl")
    assert said.code == 0, said.err
    one = outlay("evaluate", teacher, "--file", dev, *ANSWER, "--out", tmp_path / "one", "--json").json
    two = outlay("evaluate", "--predictions", tmp_path / "said.jsonl", *TAGS[:4], "--json").json
    assert one["facts"]["scores"] == two["facts"]["scores"]
    assert json.loads((tmp_path / "said.jsonl.evaluation" / "scores.json").read_text())["main"] == "micro_f1/strict"
    table = outlay("evaluate", teacher, "--file", dev, *ANSWER, "--out", tmp_path / "one")
    for words in ("entity_f1, 13 rows, 95 %", "micro_f1", "published", "strict", "already done"):
        assert words in table.out


def test_the_same_command_again_does_nothing_and_another_one_is_refused(
    world: StepsWorld, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(teacher, out)
    dev = ("--dev-file", world.file("entities", "dev"))
    before = tree(out)
    again = finetune(world, out, *dev)
    assert again.out.startswith("already done: the same request was answered here before\n")
    assert tree(out) == before
    refused(finetune(world, out, *dev, "--seed", 1), "settings.seed is 0 there, 1 here", "--overwrite")
    assert finetune(world, out, *dev, "--seed", 1, "--overwrite").code == 0
    assert json.loads((out / "request.json").read_text())["settings"]["seed"] == 1


def test_accumulation_changes_rounding_only(world: StepsWorld, tmp_path: Path) -> None:
    losses = []
    for passes in (1, 3):
        ran = finetune(world, tmp_path / str(passes), "--accumulation", passes, "--dropout", 0)
        assert ran.code == 0, ran.err
        losses.append(
            [e["loss"] for e in json.loads((tmp_path / str(passes) / "training.json").read_text())["history"]]
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_every_option_of_a_training_reaches_its_settings(world: StepsWorld, tmp_path: Path) -> None:
    options = {
        "--warmup": ("warmup_fraction", 0.25),
        "--weight-decay": ("weight_decay", 0.125),
        "--max-grad-norm": ("max_grad_norm", 0.5),
        "--optimizer": ("optimizer", "adafactor"),
        "--dropout": ("dropout", 0.25),
        "--patience": ("patience", 3),
        "--eval-steps": ("eval_steps", 4),
        "--seed": ("seed", 7),
    }
    given = [word for option, (_, value) in options.items() for word in (option, value)]
    dev = ("--dev-file", world.file("entities", "dev"), "--max-train-rows", 16, "--max-dev-rows", 5)
    out = tmp_path / "out"
    ran = finetune(world, out, *dev, *given, "--gradient-checkpointing", "--prefix", "tag: ", "--save-steps", 1)
    assert ran.code == 0, ran.err
    request = json.loads((out / "request.json").read_text())
    assert {name: request["settings"][name] for name, _ in options.values()} == dict(options.values())
    assert request["settings"]["gradient_checkpointing"] is True
    assert request["form"]["prefix"] == "tag: "
    assert ran.out.splitlines()[1] == "rows: 16, 5 dev rows"
    # 16 rows make 2 steps an epoch.
    assert [entry["step"] for entry in json.loads((out / "training.json").read_text())["history"]] == [4]


def test_every_option_of_a_large_models_training_reaches_its_settings(world: StepsWorld, tmp_path: Path) -> None:
    options = {
        "--method": ("peft", "lora"),
        "--lora-rank": ("lora_rank", 5),
        "--lora-alpha": ("lora_alpha", 7.5),
        "--optimizer": ("optimizer", "adafactor"),
        "--precision": ("precision", "bf16_weights"),
        "--batch-tokens": ("batch_tokens", 160),
        "--eval-share": ("eval_share", 0.5),
    }
    given = [word for option, (_, value) in options.items() for word in (option, value)]
    dev = ("--dev-file", world.file("entities", "dev"), "--max-train-rows", 16, "--max-dev-rows", 5)
    ran = finetune(world, tmp_path, *dev, *given, "--no-compile")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "request.json").read_text())["settings"]
    assert {name: found[name] for name, _ in options.values()} == dict(options.values())
    assert found["compile"] is False


def test_every_option_of_a_teacher_reaches_its_settings(world: StepsWorld, teacher: Path, tmp_path: Path) -> None:
    options = {
        "--max-logits": ("max_logits", 7),
        "--tail-mass": ("tail_mass", 0.25),
        "--answers-from": ("answers_from", "free"),
        "--batch-size": ("batch_size", 3),
        "--batch-tokens": ("batch_tokens", 48),
    }
    given = [word for option, (_, value) in options.items() for word in (option, value)]
    ran = teach(world, teacher, tmp_path, *given)
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "request.json").read_text())["settings"]
    assert {name: found[name] for name, _ in options.values()} == dict(options.values())


def test_a_tracker_gets_figures(world: StepsWorld, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ran = finetune(world, tmp_path / "out", "--max-train-rows", 8, "--report-to", "tensorboard")
    assert ran.code == 0, ran.err
    assert list((tmp_path / "out" / "tracking").rglob("events.*"))


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--source-column", "text"), ("'text'", "source, target", "name one with --source-column")),
        (("--target-column", "gold"), ("'gold'", "source, target", "name one with --target-column")),
        (("--kind", "ranking"), ("--kind 'ranking'", "classification, entities, generation")),
        (("--kind", "generation"), ("generation", "--labels gives 2", "leave them out")),
        (("--labels", "Action, Reagent"), ("--labels 'Action, Reagent', 'Action, Reagent'", "once")),
        (("--metric", "accuracy"), ()),
        (("--lr", 2), ("learning_rate is 2.0", "between 0 and 1")),
        (("--optimizer", "sgd"), ("optimizer is 'sgd'", "adamw, adafactor or adamw_8bit")),
        (("--accumulation", 0), ("--accumulation is 0", "at least 1")),
        (("--patience", 2), ("--patience", "add --dev-file")),
        (("--eval-steps", 2), ("--eval-steps", "add --dev-file")),
        (("--eval-share", 0.5), ("--eval-share", "add --dev-file")),
        (("--method", "prefix"), ("method is 'prefix'", "lora or ia3")),
        (("--lora-rank", 4), ("--lora-rank", "method is full", "add --method lora")),
        (("--precision", "bf16_weights"), ("optimizer is 'adamw'", "adafactor")),
        (("--processes", 0), ("--processes is 0", "at least 1")),
        (("--threads", 0), ("--threads is 0", "at least 1")),
        (("--max-train-rows", 0), ("0 rows", "at least 1")),
        (("--fsdp",), ("--fsdp", "add --processes 2")),
        (("--role", "distiller"), ("--role 'distiller'", "student or teacher")),
        (("--report-to", "pigeon"), ("'pigeon'", "wandb, tensorboard, trackio or none")),
        (("--task", "fever"), ("REFUTES, SUPPORTS", "leave --kind and --labels out")),
        (("--model", "cut:1"), ("cut:1", "base")),
        (("--model", "./nowhere"), ("nowhere",)),
        (("--max-target-tokens", 2), ("max_target_tokens = 2",)),
    ],
)
def test_a_training_that_cannot_be_is_refused(
    world: StepsWorld, tmp_path: Path, options: tuple[object, ...], says: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    if options[0] == "--metric":
        options = (*options, "--dev-file", world.file("entities", "dev"))
        says = ("--metric 'accuracy' does not score entities; choose one of entity_f1",)
    refused(finetune(world, out, *options), *says)
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            [{"source": "mix salt", "target": "mix [Action]"}, {"source": "heat", "target": None}],
            "(row 2)",
        ),
        ([{"source": "mix salt", "target": "mix [Action] salt"}], "'salt'"),
        ([{"source": "", "target": "mix [Action]"}], "(row 1)"),
        ([], "train.jsonl"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(
    world: StepsWorld, tmp_path: Path, found: list[dict[str, Any]], says: str
) -> None:
    file = write_rows(tmp_path / "train.jsonl", found)
    refused(finetune(world, tmp_path / "out", train=file), str(file), says)


def test_a_label_outside_the_set_and_one_that_cannot_be_spelt_are_refused(world: StepsWorld, tmp_path: Path) -> None:
    def classes(labels: str, target: str) -> Ran:
        file = write_rows(tmp_path / "train.jsonl", [{"source": "mix salt", "target": target}])
        model = ("--model", world.model("t5"), "--train-file", file)
        return outlay("finetune", *model, "--labels", labels, *QUICK, "--out", tmp_path / "out")

    refused(classes("NO,YES", "maybe"), "(row 1)", "'maybe'", "'NO', 'YES'")
    refused(classes("NO,Ωμέγα", "NO"), "'Ωμέγα'")
    assert not (tmp_path / "out").exists()


def test_a_label_that_one_list_names_twice_is_refused(world: StepsWorld, tmp_path: Path) -> None:
    model = ("--model", world.model("t5"), "--train-file", world.file("entities", "train"))
    asked = ("--kind", "entities", "--labels", "Reagent,Reagent", *QUICK, "--out", tmp_path / "out")
    refused(outlay("finetune", *model, *asked), "--labels 'Reagent', 'Reagent'", "once")


def test_there_must_be_something_to_train_on(world: StepsWorld, tmp_path: Path) -> None:
    ran = outlay("finetune", "--model", world.model("t5"), *TAGS, *QUICK, "--out", tmp_path / "out")
    refused(ran, "name a --task or a --train-file")


def test_an_encoder_does_not_write(world: StepsWorld, tmp_path: Path) -> None:
    free = (
        "--train-file",
        world.file("generation", "train"),
        "--kind",
        "generation",
        *QUICK,
        "--out",
        tmp_path / "out",
    )
    refused(
        outlay("finetune", "--model", world.model("bert"), *free), world.model("bert"), "encoder", "seq2seq or causal"
    )


def test_a_tracker_that_is_not_installed_is_named(world: StepsWorld, tmp_path: Path) -> None:
    ran = finetune(world, tmp_path / "out", "--report-to", "wandb")
    refused(ran, "`pip install wandb`")
    # Nothing was lost by it: the same command without the tracker goes on.
    assert finetune(world, tmp_path / "out").code == 0


def test_a_model_is_used_for_what_it_learnt(world: StepsWorld, teacher: Path, tmp_path: Path) -> None:
    dev, out = world.file("entities", "dev"), tmp_path / "out"
    refused(outlay("predict", world.model("t5"), "--file", dev, "--out", out), "outlay.json", "`outlay finetune`")
    refused(outlay("predict", teacher, "--out", out), "name a --task or a --file")
    refused(outlay("predict", teacher, "--file", dev, "--beams", 0, "--out", out), "beams is 0", "at least 1")
    refused(outlay("predict", teacher, "--file", dev, "--precision", "fp8", "--out", out), "--precision is 'fp8'")
    refused(outlay("predict", teacher, "--file", tmp_path / "no.jsonl", "--out", out), "no.jsonl is not there")
    refused(outlay("evaluate", teacher, "--file", dev, "--kind", "generation"), "leave --kind and --labels out")
    refused(outlay("evaluate", teacher, "--task", "fever"), "task fever", "REFUTES, SUPPORTS")
    refused(outlay("evaluate", "--out", out), "a MODEL or a file of --predictions")
    pool = world.file("entities", "pool")
    refused(outlay("evaluate", teacher, "--file", pool), "'target'", "source", "--target-column")
    refused(outlay("evaluate", "--predictions", dev, *TAGS[:4]), "'prediction'", "--prediction-column")
    for option in (("--file", dev), ("--split", "dev"), ("--max-rows", 3), ("--beams", 4), ("--seed", 1)):
        refused(
            outlay("evaluate", "--predictions", dev, *TAGS[:4], *option), "--predictions", option[0], "leave it out"
        )
    assert not out.exists()


def test_targets_that_are_not_there_or_for_nobody_are_refused(
    world: StepsWorld, teacher: Path, targets: Path, tmp_path: Path
) -> None:
    student = ("--student", world.model("small"), *QUICK, "--out", tmp_path / "out")
    refused(outlay("distill", tmp_path, *student), str(tmp_path), "targets.json", "`outlay teach`")
    for n in (0, -1):
        refused(outlay("distill", targets, *student, "--max-rows", n), f"{n} rows", "at least 1")
    file = ("--file", world.file("entities", "pool"), *ANSWER, "--out", tmp_path / "out")
    refused(outlay("teach", teacher, *file), "--student", "--target")
    refused(outlay("teach", teacher, *file, "--target", "tags"), "tokens or text", "tags")
    sampled = ("--student", world.model("small"), "--sample", "--beams", 2)
    refused(outlay("teach", teacher, *file, *sampled), "beams is 2", "sampled")


# --- several processes -----------------------------------------------------------------------------------------------


def test_only_a_command_that_is_alone_starts_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not needs_launch(None)
    assert not needs_launch(1)
    assert needs_launch(2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not needs_launch(None)
    assert not needs_launch(2)
    with pytest.raises(UsageError, match=r"--processes is 3\b.*\b2\b.*--processes out$"):
        needs_launch(3)


def several(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command as two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "outlay", *map(str, arguments), "--processes", "2"]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


# Blocks of at most 1,024 rows: one for each process, and three, of which one process takes two.
@pytest.mark.parametrize(
    ("n_rows", "n_blocks"),
    [pytest.param(1040, 2, marks=pytest.mark.slow), pytest.param(2100, 3, marks=pytest.mark.slow)],
)
def test_two_processes_write_the_targets_of_one(
    world: StepsWorld, teacher: Path, tmp_path: Path, n_rows: int, n_blocks: int
) -> None:
    lines = world.file("entities", "pool").read_text().splitlines()
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f"{lines[i % 29]}\n" for i in range(n_rows)))
    student = ("--student", world.model("small"), "--file", pool, *ANSWER, "--max-logits", 3)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = outlay("teach", teacher, *student, "--out", one)
    assert alone.code == 0, alone.err
    ran = several("teach", teacher, *student, "--out", two)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    found, expected = tree(two), tree(one)
    assert found.pop("summary.json") != expected.pop("summary.json")
    assert len([name for name in expected if name.endswith(".safetensors")]) == n_blocks
    assert found == expected


def test_what_is_wrong_is_said_once_by_several_processes(world: StepsWorld, tmp_path: Path) -> None:
    train = world.file("entities", "train")
    model = ("--model", world.model("t5"), "--train-file", train, *QUICK, "--out", tmp_path / "out")
    ran = several("finetune", *model, "--kind", "entities", "--labels", "Action")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("outlay: ")
    assert ran.stderr.count("\n") == 1, ran.stderr


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(world: StepsWorld, tmp_path: Path) -> None:
    dev = ("--dev-file", world.file("entities", "dev"), "--dropout", 0)
    model = ("--model", world.model("t5"), "--train-file", world.file("entities", "train"), *TAGS, *QUICK)
    assert outlay("finetune", *model, *dev, "--out", tmp_path / "one").code == 0
    ran = several("finetune", *model, *dev, "--out", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    histories = [json.loads((tmp_path / name / "training.json").read_text())["history"] for name in ("one", "two")]
    for one, two in zip(*histories, strict=True):
        assert one == pytest.approx(two, abs=1e-4)
