"""Whatever names something is unique before money moves, and a dry run names and finds what the run names and finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlay.errors import OutlayError, StudyFileError, TaskFileError, UsageError
from outlay.models.sizes import load_sizes
from outlay.money.amounts import PriceBook
from outlay.money.machines import load_machines
from outlay.plan.request import Request
from outlay.study.grid import Grid, load_study
from outlay.tasks.task import load_task
from tests.checkpoints import make_checkpoint
from tests.studies import study_in_this_process
from tests.test_cli import Ran, outlay, refused

PRICES = '[[price]]\nitem = "label/t"\nunit = "label"\nusd = "0.1"\nsource = "me"\nchecked = 2024-01-01\n'
TASK = """
name: {name}
text: "{{message}}"
labels: [pos, neg]
price_item: label/t
max_source_tokens: 32
dev: none
data:
  train: {{file: train.jsonl, target: label}}
  test: {{file: test.jsonl, target: label}}
pool:
  - {{name: train, split: train}}
"""
STUDY = """
name: folders
rivals: false
strategies: [annotate, distill]
student_training: free
scales:
  cpu:
    models: {{teacher: {model}, student: cut:1}}
    threads: 1
    settings:
      teacher: &few {{epochs: 1, batch_size: 16, lr: 0.001}}
      student: *few
      distil: *few
    n_initial: 10
    added_usd: [0, 1]
    {more}
"""


def text(number: int) -> str:
    word = ("good great fine nice" if number % 2 else "bad awful sad poor").split()[number // 2 % 4]
    return f"the {word} thing number {number} was {word}"


def write_rows(folder: Path, n_train: int = 40) -> None:
    folder.mkdir(parents=True)
    for name, numbers in (("train", range(n_train)), ("test", range(500, 520))):
        rows = ({"message": text(i), "label": "pos" if i % 2 else "neg"} for i in numbers)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder: Path, name: str, *, n_train: int = 40, changed: tuple[str, str] = ("", "")) -> Path:
    write_rows(folder, n_train)
    (folder / "task.yaml").write_text(TASK.format(name=name).replace(*changed))
    return folder / "task.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("names") / "model", [text(i) for i in range(520)], n_layers=2)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two tasks, each in a folder of the same name, and prices; commands are given there, and no worker is started."""
    write_task(tmp_path / "a" / "data", "tk_a")
    write_task(tmp_path / "b" / "data", "tk_b")
    (tmp_path / "prices.toml").write_text(PRICES)
    monkeypatch.chdir(tmp_path)
    study_in_this_process(monkeypatch)
    return tmp_path


def write_study(place: Path, model: Path, more: str, name: str = "study.yaml") -> Path:
    (place / name).write_text(STUDY.format(model=model, more=more))
    return place / name


def study(*more: object) -> Ran:
    return outlay("study", "run", "study.yaml", "--prices", "prices.toml", "--store", "store", *more)


# --- one source of the name ------------------------------------------------------------------------------------------

BOTH = "tasks: {a/data/task.yaml: {}, b/data/task.yaml: {}}"


def test_a_plan_tells_apart_two_tasks_in_folders_of_one_name(place: Path, model: Path) -> None:
    write_study(place, model, f"strategies: [annotate]\n    {BOTH}")
    lines = [" ".join(line.replace("│", " ").split()) for line in study("--dry-run").out.splitlines()]
    assert lines[0] == "tk_a, tk_b: 4 points, 0 of them N/A"
    assert "tk_a annotate 10 2 0 10 to 20 0 $3.00" in lines
    assert "tk_b annotate 10 2 0 10 to 20 0 $3.00" in lines
    points = study("--dry-run", "--json").json["points"]
    assert Counter(point["task"] for point in points) == {"tk_a": 2, "tk_b": 2}


STUDIES = {
    "two folders of one name": BOTH,
    "no money for more labels": "strategies: [annotate]\n    tasks: {a/data/task.yaml: {n_initial: 38}}",
    "said to be absent": "strategies: [annotate]\n    tasks: {a/data/task.yaml: {}, b/data/task.yaml: {absent: not yet}}",
    "too small a pool": "pool_rows: [20, 41]\n    tasks: {a/data/task.yaml: {}}",
    "no data": "strategies: [annotate]\n    tasks: {a/data/task.yaml: {}, c/data/task.yaml: {}}",
    "a model that is nowhere": (
        "strategies: [annotate]\n    tasks: {a/data/task.yaml: {models: {student: [cut:1, cut:9]}, added_usd: 0}}"
    ),
}
OTHERS = ("no money for more labels", "too small a pool")
"""Those of `slow`."""


@pytest.mark.parametrize(
    "more",
    [pytest.param(more, id=name, marks=[pytest.mark.slow] if name in OTHERS else []) for name, more in STUDIES.items()],
)
def test_a_dry_run_finds_what_the_run_finds(place: Path, model: Path, more: str) -> None:
    (write_task(place / "c" / "data", "tk_c").parent / "test.jsonl").unlink()
    write_study(place, model, more)
    planned, ran = study("--dry-run", "--json"), study("--json")
    assert not (place / "outlay-runs" / "logs").exists()
    assert (planned.code, planned.err) == (ran.code, ran.err) == (0, "")
    foreseen = [
        (
            p["task"],
            p["strategy"],
            p["budget_usd"],
            p["seed"],
            {"planned": "ok"}.get(p["status"], p["status"]),
            p["reason"],
        )
        for p in planned.json["points"]
    ]
    found = [
        (
            *(p["request"][key] for key in ("task", "strategy", "budget_usd", "seed")),
            p["result"]["status"],
            p["result"]["reason"],
        )
        for p in ran.json
    ]
    assert foreseen == found
    assert {p["task"] for p in planned.json["points"]} <= {"tk_a", "tk_b", "tk_c"}
    charges = [
        (p["charge_at_most_usd"], q["result"]["charge_usd"])
        for p, q in zip(planned.json["points"], ran.json, strict=True)
    ]
    assert all(charge <= at_most for at_most, charge in charges)
    (folder,) = (place / "outlay-runs").iterdir()
    labels = [cell["label"] for cell in json.loads((folder / "study.json").read_text())["cells"]]
    assert [label.split(":")[0] for label in labels] == [point["task"] for point in planned.json["points"]]
    told = outlay("study", "status", folder, "--json").json
    assert {(status, reason) for status, _, reason in told["reasons"]} == {(s, r) for *_, s, r in found if s != "ok"}


REFUSED = {
    "nothing can be filled": "tasks: {a/data/task.yaml: {n_initial: 300}}",
    "two of one name": "tasks: {a/data/task.yaml: {}, d/task.yaml: {}}",
    "a task that is not there": "tasks: {e/task.yaml: {}}",
    "a task that cannot be read": "tasks: {f/task.yaml: {}}",
    "a price that nobody knows": "tasks: {g/task.yaml: {}}",
}


@pytest.mark.parametrize("more", REFUSED.values(), ids=REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses(place: Path, model: Path, more: str) -> None:
    write_task(place / "d", "tk_a")
    write_task(place / "f", "tk_f", changed=("labels", "lables"))
    write_task(place / "g", "tk_g", changed=("label/t", "label/nobody"))
    write_study(place, model, more)
    planned, ran = study("--dry-run"), study()
    refused(ran)
    assert (planned.code, planned.err) == (ran.code, ran.err)
    assert not (place / "outlay-runs").exists()


def test_a_dry_run_refuses_a_folder_of_another_study(place: Path, model: Path) -> None:
    write_study(place, model, "strategies: [annotate]\n    tasks: {a/data/task.yaml: {added_usd: 0}}")
    assert study("--quiet", "--out", "out").code == 0
    (place / "study.yaml").write_text((place / "study.yaml").read_text().replace("name: folders", "name: others"))
    planned, ran = study("--dry-run", "--out", "out"), study("--out", "out")
    refused(ran, "out holds study folders")
    assert planned == ran


def test_a_run_is_kept_by_the_name_of_its_task(place: Path, model: Path) -> None:
    models = ("--teacher", model, "--student", "cut:1", "--threads", 1, "--set", "student.epochs=1", "--quiet")
    for folder in "ab":
        where = ("--prices", "prices.toml", "--store", "store")
        assert (
            outlay("run", f"{folder}/data/task.yaml", "--budget", 1, "--strategy", "annotate", *models, *where).code
            == 0
        )
    assert {path.name for path in (place / "outlay-runs").iterdir()} == {"tk_a-annotate", "tk_b-annotate"}


# --- given once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["same", "other"])
def test_two_tasks_of_one_name_make_no_study(place: Path, model: Path, case: str) -> None:
    name = "tk_a" if case == "same" else "TK_A"
    write_task(place / "d", name)
    path = write_study(place, model, "tasks: {a/data/task.yaml: {}, d/task.yaml: {}}")
    says = "both called tk_a" if case == "same" else "differ in case only"
    with pytest.raises(StudyFileError, match=f"a/data/task.yaml and .*d/task.yaml are .*{says}"):
        load_study(path).at("cpu", price=PriceBook.load([place / "prices.toml"]).get)


@pytest.mark.parametrize("again", ["./a/data/task.yaml", "a/../a/data/task.yaml"])
def test_a_task_that_is_named_twice(place: Path, model: Path, again: str) -> None:
    path = write_study(place, model, f"tasks: {{a/data/task.yaml: {{}}, {again}: {{}}}}")
    with pytest.raises(UsageError, match="named twice"):
        load_study(path).at("cpu", price=PriceBook.load([place / "prices.toml"]).get)


NAMES = ["", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", "ä", "x" * 101, "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_not_do_as_names_of_files(tmp_path: Path, model: Path, name: str) -> None:
    task = write_task(tmp_path / "t", json.dumps(name))
    with pytest.raises(TaskFileError, match=r"task\.yaml: name: "):
        load_task(task)
    text = STUDY.format(model=model, more="tasks: {}")
    for changed in (text.replace("folders", json.dumps(name)), text.replace("  cpu:", f"  ? {json.dumps(name)}\n  :")):
        (tmp_path / "s.yaml").write_text(changed)
        with pytest.raises(StudyFileError, match=r"s\.yaml: (name|scales)"):
            load_study(tmp_path / "s.yaml")


def test_a_folder_with_the_names_of_many_tasks_is_not_longer_than_a_name_may_be(place: Path, model: Path) -> None:
    for i in range(4):
        write_task(place / str(i), f"{i}" + "n" * 99)
    write_study(place, model, "strategies: [annotate]\n    any_task: {added_usd: 0}")
    tasks = ",".join(f"{i}/task.yaml" for i in range(4))
    assert study("--quiet", "--task", tasks).code == 0
    (folder,) = (place / "outlay-runs").iterdir()
    assert len(folder.name) < 200


TWICE = {
    "part of a pool": ("pool:\n", "pool:\n  - {name: train, file: train.jsonl}\n", "two are called 'train'"),
    "source": (
        "  test:",
        "  more_train: [{file: train.jsonl, target: label}]\n  test:",
        "data.more_train.0. takes rows that train has already",
    ),
    "segment": ("labels:", "segments: [text, text]\nlabels:", "name each field once"),
    "label": ("[pos, neg]", "[pos, neg, pos]", "must differ from each other"),
    "key": ("labels:", "name: other\nlabels:", "'name' is given twice"),
}


@pytest.mark.parametrize(("old", "new", "says"), TWICE.values(), ids=TWICE)
def test_what_a_task_file_names_twice(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(TaskFileError, match=says):
        load_task(write_task(tmp_path / "t", "tk", changed=(old, new)))


def test_a_setting_under_both_its_names(place: Path, model: Path) -> None:
    path = write_study(place, model, "tasks: {a/data/task.yaml: {settings: {student: {lr: 0.1, learning_rate: 0.2}}}}")
    with pytest.raises(StudyFileError, match="student: learning_rate is given twice"):
        load_study(path)


MACHINE = """
[[machine]]
name = "m"
price_item = "cpu"
peak_flops_per_second = 1
utilisation_train = "1"
utilisation_infer = "1"
source = "me"
"""
SIZE = "s: {type: t5, n_layers: 2, hidden_size: 32, d_ff: 64, n_heads: 2, vocab_size: 100, head_size: 16, n_decoder_layers: 2}\n"


@pytest.mark.parametrize(
    ("load", "text"),
    [(PriceBook.load, PRICES), (load_machines, MACHINE), (load_sizes, SIZE)],
    ids=["prices", "machines", "sizes"],
)
def test_what_a_list_names_twice(tmp_path: Path, load: object, text: str) -> None:
    file = tmp_path / "list"
    file.write_text(text)
    assert load([file])  # type: ignore[operator]
    file.write_text(text * 2)
    with pytest.raises(OutlayError, match=r"list.* twice"):
        load([file])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--budget", "1", "--budget", "2"), "--budget is given 2 times"),
        (("--budget", "1", "--seed", "0", "--seed=1"), "--seed is given 2 times"),
        (("--budget", "1", "--strategy", "annotate", "--strategy", "distill"), "--strategy is given 2 times"),
        (("--budget", "1", "--general-student", "a", "--general-student", "b"), "--general-student is given 2 times"),
        (
            ("--budget", "1", "--set", "teacher.epochs=1", "--set", "teacher.epochs=2"),
            "--set teacher.epochs is given twice",
        ),
    ],
)
def test_what_a_command_is_asked_twice(place: Path, options: tuple[str, ...], says: str) -> None:
    refused(outlay("run", "a/data/task.yaml", "--prices", "prices.toml", *options), says)
    assert not (place / "outlay-runs").exists()


def test_models_and_budgets_that_are_named_twice_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    base = Request("t", "annotate", 1)
    for names in (("./m", "m"), ("m", "~/m"), ("./m", str(tmp_path / "m"))):
        for axis in ("teachers", "students"):
            with pytest.raises(UsageError, match=f"{tmp_path}/m is named twice among the {axis}"):
                Grid(base, ("annotate",), (1,), (0,), **{axis: names})  # type: ignore[arg-type]
    refused(outlay("compare", "fever", "--budgets", "300,$300.00"), "$300.00 is named twice among the budgets")
    refused(outlay("compare", "fever", "--budgets", "300", "--budgets", "400"), "--budgets is given 2 times")
