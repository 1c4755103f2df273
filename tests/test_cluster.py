"""Jobs here and on a real Ray cluster of this machine: the same results, retries, and a folder that must be sent."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import ClusterError, UnknownModel, UsageError, WorkFailed
from outlay.settings import TeachSettings
from outlay.standalone.inference import InferenceOptions, Teaching, teach
from outlay.standalone.request import Data
from outlay.standalone.runtime import RuntimeOptions
from outlay.standalone.training import finetune
from outlay.workers.pool import N_TRIES, THREAD_VARIABLES, WorkerFn
from outlay.workers.ray import RayPool, check_interpreter, workers_of
from outlay.workers.ray_map import run_on_cluster
from tests.contracts.run_jobs_contract import Multiply, RunJobs, RunJobsContract, payloads
from tests.contracts.study_contract import StudyContract, StudyPoolMaker, conducted_plainly, small_world
from tests.contracts.worker_pool_contract import Maker, ProcessPoolContract, one
from tests.listeners import Silent
from tests.runs import World
from tests.steps_world import StepsWorld, tree

pytest.importorskip("ray")
N_CPUS = 2
ONE = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the machines of the cluster, and where their workers stand."""
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def ray(temporary: Path) -> Iterator[None]:
    """A cluster of two CPUs that this process is connected to."""
    import ray

    if " " in sys.executable:
        pytest.skip("Ray starts no worker from a path with blanks: run the tests in a clone without any")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(temporary)
        # Workers unpickle functions of this module.
        patched.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=N_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"TMPDIR": str(temporary)}},
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes for a checkpoint: its files have contents, nobody loads them."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(251)) * 17)
    (folder / "factor.txt").write_text("11")
    return folder


class TestHere(RunJobsContract):
    @pytest.fixture
    def run_jobs(self) -> RunJobs:
        return RuntimeOptions().run_jobs

    @pytest.fixture
    def folder(self, model: Path) -> Path:
        return model


@pytest.mark.usefixtures("ray")
class TestCluster(RunJobsContract):
    @pytest.fixture
    def run_jobs(self) -> RunJobs:
        return RuntimeOptions(threads=1, ray="local").run_jobs

    @pytest.fixture
    def folder(self, model: Path) -> Path:
        return model


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
class TestRayPool(ProcessPoolContract):
    n_workers = N_CPUS

    @pytest.fixture
    def make(self, tmp_path: Path) -> Maker:
        return lambda factory, n_workers: RayPool(factory, "local", 1, max_workers=n_workers, logs=tmp_path / "logs")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
class TestStudiesOnACluster(StudyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tmp_path_factory: pytest.TempPathFactory) -> World:
        return small_world(tmp_path_factory.mktemp("study"))

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return conducted_plainly(world, tmp_path_factory.mktemp("plain"))

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> StudyPoolMaker:
        return lambda factory: RayPool(factory, "local", 1, max_workers=N_CPUS)


def only_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that leads to the folder in this process, and in a worker to what is called so where it stands."""
    monkeypatch.chdir(folder.parent)
    return Path("/proc/self/cwd") / folder.name


@pytest.mark.slow
def test_a_folder_that_is_not_there_is_sent_and_removed_again(
    ray: None, model: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlay.workers.ray_map._PIECE_BYTES", 1009)  # so that the weights take five pieces
    folder = only_here(model, monkeypatch)
    with closing(run_on_cluster("local", 1, Multiply("factor.txt"), payloads(2, 3, 5, 7, 13), folder)) as made:
        assert next(made)[1][1] == "folder"  # where a sent one is unpacked
        [unpacked] = temporary.glob("outlay-*/folder")
        assert {path.name: path.read_bytes() for path in unpacked.iterdir()} == {
            path.name: path.read_bytes() for path in model.iterdir()
        }
        assert {product for _, (product, _) in made} < {22, 33, 55, 77, 143}
    assert list(temporary.glob("outlay-*")) == []


@pytest.mark.slow
def test_a_folder_of_that_name_with_another_model_is_not_taken_for_it(
    ray: None, model: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Same names, same sizes, other weights."""
    here, there = tmp_path / "teacher", temporary / "teacher"
    for place, factor in ((here, "11"), (there, "19")):
        shutil.copytree(model, place)
        (place / "factor.txt").write_text(factor)
    [(_, found)] = run_on_cluster("local", 1, Multiply("factor.txt"), payloads(3), only_here(here, monkeypatch))
    assert found == (33, "folder")
    (there / "factor.txt").write_text("11")
    [(_, found)] = run_on_cluster("local", 1, Multiply("factor.txt"), payloads(3), only_here(here, monkeypatch))
    assert found == (33, "teacher")


@dataclass(frozen=True)
class Stumble:
    """Notes every try; the first ``n_bad`` of a job kill the worker, or raise."""

    notes: Path
    n_bad: int
    kills: bool

    def __call__(self, folder: Path, payload: int) -> int:
        tries = self.notes / str(payload)
        with tries.open("a") as file:
            file.write("x")
        if len(tries.read_text()) <= self.n_bad:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"try of {payload}\nand more")
        return payload


@pytest.mark.slow
@pytest.mark.parametrize("kills", [False, True])
def test_a_failed_job_is_tried_twice_more(ray: None, model: Path, tmp_path: Path, kills: bool) -> None:
    done = dict(run_on_cluster("local", 1, Stumble(tmp_path, N_TRIES - 1, kills), payloads(3), model))
    assert done == {"job 3": 3}
    assert (tmp_path / "3").read_text() == "x" * 3


@pytest.mark.slow
def test_a_job_that_fails_for_good_is_named(ray: None, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"^job 7 .* 3 tries.*ValueError \(try of 7\).*--ray$"):
        list(run_on_cluster("local", 1, Stumble(tmp_path, 99, False), payloads(7), model))
    assert (tmp_path / "7").read_text() == "xxx"


@dataclass(frozen=True)
class Dawdle:
    """The job of 1 is done at once, every other takes a minute."""

    notes: Path

    def __call__(self, folder: Path, payload: int) -> int:
        (self.notes / f"began-{payload}").touch()
        if payload != 1:
            time.sleep(60)
            (self.notes / f"ended-{payload}").touch()
        return os.getpid()


@pytest.mark.slow
def test_closing_ends_what_is_under_way(ray: None, model: Path, tmp_path: Path) -> None:
    with closing(run_on_cluster("local", 1, Dawdle(tmp_path), payloads(*range(1, 30)), model)) as made:
        assert next(made)[0] == "job 1"
    # Whoever comes next finds the workers free.
    assert dict(run_on_cluster("local", 1, Multiply("factor.txt"), payloads(2), model))["job 2"][0] == 22
    # Nobody waited for the minute that each of the others takes.
    assert list(tmp_path.glob("ended-*")) == []
    assert len(list(tmp_path.glob("began-*"))) <= N_CPUS + 1


def process_id(folder: Path, payload: int) -> int:
    return os.getpid()


@pytest.mark.slow
def test_workers_are_kept_from_job_to_job(ray: None, model: Path) -> None:
    workers = {pid for _, pid in run_on_cluster("local", 1, process_id, payloads(*range(17)), model)}
    assert 1 <= len(workers) <= N_CPUS
    assert os.getpid() not in workers


def test_a_machine_too_small_for_the_threads_is_named(ray: None, model: Path) -> None:
    with pytest.raises(UsageError, match=r"--threads is 3.* 2 CPUs"):
        list(run_on_cluster("local", 3, process_id, payloads(1), model))


# --- the pool --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """A worker factory whose work tells of its process."""

    def __call__(self) -> WorkerFn:
        heavy = "torch" in sys.modules
        return lambda payload, report: (os.getpid(), {name: os.environ.get(name) for name in THREAD_VARIABLES}, heavy)


@pytest.mark.slow
def test_workers_have_the_studys_threads_and_start_when_they_are_needed(ray: None) -> None:
    import ray

    with RayPool(Look(), "local", 1) as pool:
        assert pool.n_workers == pool.n_free == N_CPUS
        pids = set()
        for _ in range(3):
            pool.submit("look", None)
            pid, threads, heavy = one(pool).value
            pids.add(pid)
            assert threads == dict.fromkeys(THREAD_VARIABLES, "1")
            assert not heavy
        assert len(pids) == 1
        assert ray.available_resources()["CPU"] == N_CPUS - 1
    with RayPool(Look(), "local", 2, max_workers=5) as pool:
        assert pool.n_workers == 1
        pool.submit("look", None)
        assert one(pool).value[1]["OMP_NUM_THREADS"] == "2"


@pytest.mark.slow
def test_what_a_worker_cannot_read_is_told(ray: None, tmp_path: Path) -> None:
    with RayPool(Look(), "local", 1, logs=tmp_path) as pool:
        pool.submit("odd", Unreadable())
        error = one(pool).error
        assert isinstance(error, WorkFailed)
        assert str(error).startswith("odd failed with RaySystemError (System error: nobody can read this")
        pool.submit("look", None)
        assert one(pool).error is None


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_not_read, ())


def _not_read() -> None:
    raise ValueError("nobody can read this")


@pytest.mark.parametrize(
    ("machines", "threads", "found"),
    [
        ([{"CPU": 7.0}, {"CPU": 4.0}, {}], 2, ({"num_cpus": 2}, 5)),
        ([{"CPU": 7.0, "GPU": 3.0}, {"CPU": 64.0}, {"GPU": 1.0}], 2, ({"num_gpus": 1, "num_cpus": 0}, 4)),
    ],
)
def test_room_is_counted_machine_by_machine(
    machines: list[dict[str, float]], threads: int, found: tuple[dict[str, float], int]
) -> None:
    assert workers_of(machines, threads) == found


@pytest.mark.parametrize(
    ("threads", "most", "says"),
    [(0, None, "threads is 0; .* at least 1"), (1, 0, "workers is 0; .* at least 1")],
)
def test_numbers_that_cannot_be_are_refused(threads: int, most: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RayPool(Look(), "local", threads, max_workers=most)


# --- the teacher pass ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_process_and_goes_on_where_it_was(
    ray: None, world: StepsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = world.root / "teacher"
    finetune(world.recipe("entities", "t5", teacher, file=world.file("entities", "train")), Silent())
    pool = Data(file=world.file("entities", "pool"))
    asked = InferenceOptions(teacher, tmp_path / "one", pool, precision="fp32", block_rows=7, runtime=ONE)
    for_student = Teaching(student=world.model("small"), settings=TeachSettings(max_logits=5))
    plain = teach(asked, for_student, Silent())
    shared = replace(asked, out=tmp_path / "two", runtime=replace(ONE, ray="local"))
    assert teach(shared, for_student, Silent()).n_tokens_inferred == plain.n_tokens_inferred
    expected = tree(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".safetensors")]) == 5
    found = tree(tmp_path / "two")
    assert found.pop("summary.json") != expected.pop("summary.json")  # the folder's name stands in it
    assert found == expected

    # What is there is not made again: a block of another content stays as it is.
    half = replace(shared, out=tmp_path / "three")
    shutil.copytree(tmp_path / "two", half.out)
    kept, lost = (tmp_path / "three" / f"targets-0000{number}.safetensors" for number in (1, 3))
    kept.write_bytes((tmp_path / "one" / "targets-00002.safetensors").read_bytes())
    lost.unlink()
    (tmp_path / "three" / "summary.json").unlink()
    counts = tmp_path / "three" / ".work"
    counts.mkdir()
    for number in range(5):
        (counts / f"count-{number:05d}.json").write_text('{"tokens": 1, "seconds": 0.0}')
    teach(half, for_student, Silent())
    again = tree(tmp_path / "three")
    assert again["targets-00003.safetensors"] == expected["targets-00003.safetensors"]
    assert again["targets-00001.safetensors"] == expected["targets-00002.safetensors"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "remote", "host", "http://host:1", "host:port", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="auto, local, HOST:PORT or ray://HOST:PORT"):
        RuntimeOptions(ray=address)


@pytest.mark.parametrize("address", ["auto", "local", "head.example:6379", "[::1]:6379", "ray://10.0.0.7:10001"])
def test_addresses_are_read(address: str) -> None:
    assert RuntimeOptions(ray=address).ray == address


def test_one_process_deals_the_work_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--ray .*--device-map"):
        RuntimeOptions(ray="auto", device_map="auto").check()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--ray .*\b2; .*--processes"):
        RuntimeOptions(ray="auto").check()


def test_a_cluster_that_is_not_there_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"^no Ray cluster answers"), RayPool(Look(), "127.0.0.1:1", 1):
        pass
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ClusterError, match=r"^no Ray cluster answers at '[^\n]*refused[^\n]*$"):
            list(run_on_cluster(address, 1, process_id, payloads(1), model))


def test_without_ray_the_way_out_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'outlay\[ray\]'"):
        list(run_on_cluster("local", 1, process_id, payloads(1), model))


def test_a_folder_without_a_model_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"no model\.safetensors"):
        list(run_on_cluster("127.0.0.1:1", 1, process_id, payloads(1), tmp_path))


def test_a_python_that_ray_cannot_start_is_refused_in_one_line() -> None:
    check_interpreter("/opt/venv/bin/python")
    with pytest.raises(UsageError, match="'/my clone/bin/python'"):
        check_interpreter("/my clone/bin/python")
