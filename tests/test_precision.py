"""What `auto` means: measured once, kept, and the same for whoever asks again; never in a key, and never changed in silence."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from outlay.cli.app import main
from outlay.engine.prepare import RunBuilder
from outlay.errors import UsageError
from outlay.hardware import precision
from outlay.hardware.precision import (
    FILE,
    FOLDER,
    LEAST_SPEEDUP,
    TOO_SLOW,
    Bf16Speed,
    bf16_speed,
    check_worker,
    keep_bf16_speed,
    kept_bf16_speed,
    remarks,
    resolve,
    without_auto,
)
from outlay.hardware.processor import cpu_name
from outlay.money.amounts import PriceBook
from outlay.money.ledger import Ledger
from outlay.plan.request import Request
from outlay.report.results import Header
from outlay.standalone.inference import InferenceOptions, predict
from outlay.standalone.request import Data
from outlay.standalone.runtime import RuntimeOptions
from outlay.standalone.training import finetune
from outlay.study.grid import find_study, load_study, shipped_studies
from outlay.study.index import StudyIndex
from outlay.tasks.overrides import TrainingOverrides
from tests.listeners import Silent
from tests.runs import World
from tests.steps_world import StepsWorld
from tests.test_cli import outlay, refused

SLOW, FAST = 0.02, 3.0
"""Speed in bf16 of a forged machine, as a multiple of that in float32."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and nothing chosen beforehand."""
    for name in ("OUTLAY_PRECISION", *precision.LIMITS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "_measured", {})
    monkeypatch.setattr(precision, "_told", set())
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What measurements find, one after another; each is taken away."""
    from outlay.hardware import bf16

    found: list[float] = []
    monkeypatch.setattr(bf16, "measure_bf16_ratio", lambda: found.pop(0))
    return found


# --- measured and kept -----------------------------------------------------------------------------------------------


def test_a_machine_on_the_border_says_the_same_to_every_process(
    cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured[:] = [LEAST_SPEEDUP, LEAST_SPEEDUP - 0.01]
    assert resolve("auto") == "bf16"
    monkeypatch.setattr(precision, "_measured", {})  # another process
    assert [resolve("auto") for _ in range(3)] == ["bf16"] * 3
    assert measured == [LEAST_SPEEDUP - 0.01]
    assert kept_bf16_speed() == Bf16Speed(cpu_name(), LEAST_SPEEDUP)
    assert resolve("fp32") == "fp32"


@pytest.mark.parametrize(
    ("ratio", "means"), [(0.0, "fp32"), (SLOW, "fp32"), (1.199, "fp32"), (1.2, "bf16"), (9, "bf16")]
)
def test_bf16_is_taken_where_it_is_a_fifth_faster(cache: Path, ratio: float, means: str) -> None:
    keep_bf16_speed(ratio)
    assert resolve("auto") == means
    assert (resolve("bf16"), resolve("fp32")) == ("bf16", "fp32")


@pytest.mark.parametrize("name", precision.LIMITS)
def test_a_limit_on_instructions_is_another_machine(
    cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    measured[:] = [FAST, SLOW]
    assert resolve("auto") == "bf16"
    monkeypatch.setenv(name, "AVX2")
    assert resolve("auto") == "fp32"
    monkeypatch.delenv(name)
    assert resolve("auto") == "bf16"
    assert len(json.loads((cache / FOLDER / FILE).read_text())) == 2


def test_another_torch_is_measured_anew(cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    measured[:] = [FAST, SLOW]
    assert resolve("auto") == "bf16"
    monkeypatch.setattr(precision, "version", lambda name: "99.0+cpu")
    assert resolve("auto") == "fp32"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1}', "\x00"])
def test_a_damaged_file_is_measured_anew_and_mended(
    cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (cache / FOLDER).mkdir(parents=True)
    (cache / FOLDER / FILE).write_text(text)
    measured[:] = [FAST]
    assert resolve("auto") == "bf16"
    monkeypatch.setattr(precision, "_measured", {})
    assert resolve("auto") == "bf16"


def test_where_nothing_can_be_kept_this_process_knows(
    cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("no folder can be made here")
    measured[:] = [FAST]
    assert [resolve("auto"), resolve("auto")] == ["bf16", "bf16"]


def test_the_variable_decides_without_a_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ("bf16", "fp32"):
        monkeypatch.setenv("OUTLAY_PRECISION", chosen)
        assert resolve("auto") == chosen
        assert "OUTLAY_PRECISION" in bf16_speed().reason()
    monkeypatch.setenv("OUTLAY_PRECISION", "fp8")
    with pytest.raises(UsageError, match=r"OUTLAY_PRECISION .*'fp8'.*auto, bf16 or fp32"):
        resolve("auto")
    with pytest.raises(UsageError, match=r"--precision .*'half'.*auto, bf16 or fp32"):
        resolve("half")


def test_a_kept_answer_needs_no_torch(cache: Path) -> None:
    keep_bf16_speed(FAST)
    code = "import sys; from outlay.hardware.precision import resolve; print(resolve('auto'), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert said.stdout.split() == ["bf16", "False"]


def test_this_machine_is_measured_in_a_moment() -> None:
    import time

    import torch

    from outlay.hardware.bf16 import measure_bf16_ratio

    threads, began = torch.get_num_threads(), time.process_time()
    ratio = measure_bf16_ratio()
    assert 0 < ratio < 100
    assert time.process_time() - began < 2.0  # 0.05 s where it is alone and has the instructions
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the limits are of x86")
def test_a_limited_cpu_is_a_slow_one(cache: Path) -> None:
    """`DNNL_MAX_CPU_ISA=AVX2` with `ATEN_CPU_CAPABILITY=avx2` makes a machine without bf16 of any."""
    limited = {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    code = "from outlay.hardware.precision import bf16_speed; print(bf16_speed().ratio)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **limited}
    )
    assert float(said.stdout) < 0.5


# --- what is said ----------------------------------------------------------------------------------------------------


def test_float32_is_said_where_auto_means_it_and_bf16_where_it_is_slow(cache: Path) -> None:
    keep_bf16_speed(SLOW)
    for asked, name in (("auto", "float32"), ("bf16", "bf16")):
        [line] = remarks([asked])
        assert re.fullmatch(rf"{name}\b.* 0\.02 .*{re.escape(cpu_name())}", line)
    assert remarks(["fp32"]) == []
    assert [line.split()[0] for line in remarks(["auto", "fp32", "bf16_weights"])] == ["float32:", "bf16_weights"]
    keep_bf16_speed(FAST)
    assert remarks(["auto"]) == remarks(["bf16"]) == []


# --- auto is never in a key ------------------------------------------------------------------------------------------


def test_auto_in_settings_gives_way_to_the_runs() -> None:
    assert without_auto({"precision": "auto", "epochs": 2}) == {"epochs": 2}
    assert without_auto({"precision": "fp32"}) == {"precision": "fp32"}
    training = TrainingOverrides.model_validate(
        {"teacher": {"precision": "bf16"}, "encoder": {"teacher": {"precision": "auto"}}}
    )
    assert training.settings_for("encoder", "teacher") == {}
    assert training.settings_for("causal", "teacher") == {"precision": "bf16"}


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def plain(world: World, **changes: object) -> Request:
    """A run whose settings name no precision."""
    fast = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
    return world.request(overrides=dict.fromkeys(("teacher", "student", "distil"), fast), **changes)


def test_a_run_is_the_run_that_names_what_auto_means(cache: Path, world: World) -> None:
    resolve = world.fresh().workbench.resolve
    named = {name: resolve(plain(world, precision=name)) for name in ("bf16", "fp32")}
    assert named["bf16"].run_id != named["fp32"].run_id
    for ratio, means in ((SLOW, "fp32"), (FAST, "bf16")):
        keep_bf16_speed(ratio)
        world = world.fresh()
        found = world.workbench.resolve(plain(world))
        assert found == named[means]
        assert '"precision": "auto"' not in json.dumps(found.to_json())
        known = world.workbench.prepare(plain(world)).context
        assert {known.settings(role).precision for role in ("teacher", "student", "distil")} == {means}
        mixed = plain(world)
        mixed = replace(
            mixed, overrides={**mixed.overrides, "teacher": {"precision": "bf16"}, "distil": {"precision": "auto"}}
        )
        settings = world.workbench.prepare(mixed).context.settings
        assert [settings(role).precision for role in ("teacher", "student", "distil")] == ["bf16", means, means]


def test_runs_of_before_keep_their_ids(cache: Path, world: World) -> None:
    """What named no precision was in bf16; what names one for every role asks no machine."""
    assert "precision" not in world.workbench.resolve(plain(world, precision="bf16")).to_json()
    assert "precision" not in world.workbench.resolve(world.request(strategy="annotate")).to_json()
    assert not cache.exists()


def test_published_studies_are_in_bf16_on_every_machine(cache: Path) -> None:
    for name in shipped_studies():
        file, price = load_study(find_study(name)), PriceBook.load().get
        assert {cell.request.precision for cell in file.at("paper", price=price).cells} == {"bf16"}
        assert {cell.request.precision for cell in file.at("cpu", price=price).cells} == {"auto"}
        assert {cell.request.precision for cell in file.at("cpu", precision="fp32", price=price).cells} == {"fp32"}
    with pytest.raises(UsageError, match=r"--precision .*'half'"):
        file.at("cpu", precision="half", price=price)


# --- on another machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(SLOW, FAST), (FAST, SLOW)])
def test_a_run_is_not_bought_again_in_silence(
    cache: Path, world: World, tmp_path: Path, first: float, then: float
) -> None:
    names = {SLOW: ("fp32", "float32"), FAST: ("bf16", "bf16")}
    models = ("--teacher", world.checkpoint, "--student", "cut:1", "--threads", 1, "--set", "student.epochs=1")
    ask = ("run", world.task, "--budget", 3, "--strategy", "annotate", *models, "--out", tmp_path / "out")
    ask = (*ask, "--store", tmp_path / "store")
    keep_bf16_speed(first)
    ran = outlay(*ask)
    assert ran.code == 0, ran.err
    assert bool(re.search(r"float32: .* 0\.02 ", ran.err)) == (first == SLOW)
    ledger = (tmp_path / "out/ledger.sqlite").read_bytes()
    receipt = " ".join(outlay("ledger", "show", tmp_path / "out").out.split())
    assert re.search(rf"computed: .*{names[first][1]}; .* {first:g} .*{re.escape(cpu_name())}", receipt)
    point = json.loads((tmp_path / "out/points.json").read_text())[0]
    environment = point["circumstance"]["environment"]
    assert (environment["precision"], environment["bf16_ratio"]) == (names[first][0], first)

    keep_bf16_speed(then)
    refused(
        outlay(*ask),
        f" in {names[first][1]}",
        f" in {names[then][1]}",
        f"--precision {names[first][0]}",
        f"--precision {names[then][0]}",
    )
    assert (tmp_path / "out/ledger.sqlite").read_bytes() == ledger
    assert outlay(*ask, "--precision", names[first][0]).code == 0
    assert (tmp_path / "out/ledger.sqlite").read_bytes() == ledger


STUDY = """
name: toy
rivals: false
strategies: [annotate]
scales:
  cpu:
    models: {{teacher: {checkpoint}, student: cut:1}}
    threads: 1
    n_initial: 20
    added_usd: 0
    tasks: {{{task}: {{}}}}
"""


def test_a_study_is_not_bought_again_in_silence(cache: Path, world: World, tmp_path: Path) -> None:
    """A folder with the index of a study and a ledger that knows its run in the other precision."""
    file, folder = tmp_path / "toy.yaml", tmp_path / "out"
    file.write_text(STUDY.format(checkpoint=world.checkpoint, task=world.task))
    prices = PriceBook.load()
    [cell] = load_study(file).at("cpu", price=prices.get).cells
    begun = RunBuilder(prices).resolve(replace(cell.request, precision="bf16"))
    StudyIndex(Header("toy", "toy", "plain", None, "cpu"), str(tmp_path / "store"), prices.get("cpu"), ()).write(folder)
    Ledger(folder / "ledger.sqlite").open_run(begun.run_id, begun.budget_micros)
    ask = ("study", "run", file, "--out", folder, "--store", tmp_path / "store")

    keep_bf16_speed(SLOW)
    refused(outlay(*ask), " in bf16", " in float32", "--precision bf16")
    planned = outlay(*ask, "--dry-run", "--precision", "bf16")
    assert planned.code == 0, planned.err
    assert re.search(r"bf16 .* 0\.02 ", " ".join(planned.err.split()))
    keep_bf16_speed(FAST)
    assert outlay(*ask, "--dry-run").code == 0


def test_a_step_is_not_done_again_in_silence(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = StepsWorld.make(tmp_path / "world")
    train = world.file("entities", "train")
    recipe = world.recipe("entities", "bert", tmp_path / "model", file=train, epochs=1)
    recipe = replace(recipe, overrides={name: value for name, value in recipe.overrides.items() if name != "precision"})
    keep_bf16_speed(SLOW)
    finetune(recipe, Silent())
    request = json.loads((tmp_path / "model/request.json").read_text())
    assert request["settings"]["precision"] == "fp32"
    asked = InferenceOptions(
        tmp_path / "model", tmp_path / "said.jsonl", Data(file=train), runtime=RuntimeOptions(threads=1)
    )
    predict(asked, Silent())
    assert json.loads((tmp_path / "said.jsonl.request.json").read_text())["precision"] == "fp32"

    keep_bf16_speed(FAST)
    way = '"fp32".*"bf16".*--precision fp32'
    with pytest.raises(UsageError, match=way):
        finetune(recipe, Silent())
    with pytest.raises(UsageError, match=way):
        predict(asked, Silent())
    assert finetune(replace(recipe, overrides={**recipe.overrides, "precision": "fp32"}), Silent()).is_old
    assert predict(replace(asked, precision="fp32"), Silent()).is_old


@pytest.mark.parametrize(("ratio", "wanted"), [(SLOW, "bf16"), (TOO_SLOW + 1, "fp32")])
def test_a_worker_refuses_what_is_far_slower_there(cache: Path, ratio: float, wanted: str) -> None:
    keep_bf16_speed(ratio)
    with pytest.raises(UsageError, match=r"bf16.*--precision"):
        check_worker(wanted)


@pytest.mark.parametrize(("ratio", "wanted"), [(0.5, "bf16"), (2.0, "fp32")])
def test_a_worker_that_would_choose_otherwise_says_so_once(
    cache: Path, capfd: pytest.CaptureFixture[str], ratio: float, wanted: str
) -> None:
    keep_bf16_speed(ratio)
    check_worker(wanted)
    check_worker(wanted)
    assert capfd.readouterr().err.count("outlay: ") == 1
    check_worker(resolve("auto"))
    assert capfd.readouterr().err == ""


def test_a_job_carries_the_precision_of_its_run(cache: Path, world: World, tmp_path: Path) -> None:
    """A worker on a slow machine refuses a job that a fast one planned; one that was asked for by name it does."""
    from outlay.engine.step_runner import JobRunner
    from outlay.errors import OutlayError
    from tests.runs import runner as runner_of

    for asked, named, wanted, problem in (
        ("auto", None, "bf16", True),
        ("bf16", None, "bf16", False),
        ("auto", "fp32", "bf16", False),  # each role names its own: nothing computes in what the run's would be
        ("auto", "bf16", "bf16", False),
    ):
        keep_bf16_speed(FAST)
        world = world.fresh()
        place = f"{asked}-{named}"
        runner = runner_of(tmp_path / place, tmp_path / f"{place}-store")
        from outlay.engine.buying import Purchase
        from outlay.engine.run import RunExecution
        from outlay.engine.step_runner import Job

        request = plain(world, strategy="annotate", budget_micros=3_000_000, precision=asked)
        if named is not None:
            own = {role: {**fast, "precision": named} for role, fast in request.overrides.items()}
            request = replace(request, overrides=own)
        prepared = world.workbench.prepare(request)
        with closing(RunExecution(runner.results, prepared, Silent()).open()) as execution:
            execution.advance()
            bought = execution.begin(execution.needs()[0])
            assert isinstance(bought.job, Purchase)
            execution.settle(bought, runner.results.buy(bought.job, lambda *_: None))
            execution.advance()
            begun = execution.begin(execution.needs()[0])
            assert isinstance(begun.job, Job)
            assert begun.job.request.precision == wanted
            keep_bf16_speed(SLOW)
            maker = JobRunner(runner.store, world.workbench.prepare)
            if problem:
                with pytest.raises(OutlayError, match="bf16"):
                    maker.make(begun.job, lambda *_: None)
            else:
                assert runner.store.get(maker.make(begun.job, lambda *_: None).key) is not None
            execution.release(begun, "over")


def test_the_command_takes_nothing_else(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["outlay", "run", "fever", "--budget", "1", "--precision", "half"])
    with pytest.raises(SystemExit):
        main()
    assert re.search("outlay: --precision .*'half'.*auto, bf16 or fp32", capsys.readouterr().err)


def test_an_arm_core_is_named_by_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    assert cpu_name(tmp_path / "cpuinfo") == f"{platform.machine()} 0x41 0xd0c"
