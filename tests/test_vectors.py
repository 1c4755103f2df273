"""Frozen vectors on disk: each text is encoded once, whatever run, seed or process asks, and what is damaged is not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outlay.models import vectors as cache_module
from outlay.models.loading import ModelSpec
from outlay.models.pooled import PooledModel
from outlay.models.tokenization import Encoded
from outlay.models.vectors import VectorCache, cache_of, keep_in
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.train import answering
from outlay.train.api import DevTexts, TrainContext, distil, finetune, predict, teach
from tests.checkpoints import make_checkpoint
from tests.toys import CountingMeter, encoded_rows, sentences

FORM = TaskSpec("classification", ("bad", "good"), 24, 8)
SETTINGS = TrainSettings(epochs=1, batch_size=8, learning_rate=1e-3, method="probe").changed({"probe_strengths": 1})
Rows = NDArray[np.int64]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One thread, and no vectors of other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    forget()
    yield
    forget()
    torch.set_num_threads(before)


def forget() -> None:
    """Let this process know nothing, as a new one."""
    cache_module._caches.clear()
    answering._loaded.clear()
    keep_in(None)


class Encoder:
    """Counts what it encodes; a vector is three numbers that the tokens decide."""

    def __init__(self, encoded: Encoded, ragged: bool = False) -> None:
        self.encoded = encoded
        self.ragged = ragged
        self.batches: list[list[int]] = []

    def __call__(self, rows: Rows) -> NDArray[np.float32]:
        self.batches.append(rows.tolist())
        texts = [self.encoded.row(int(row)).astype(np.float32) for row in rows]
        assert len({len(text) for text in texts}) == 1, "texts of two lengths in one batch"
        if self.ragged:
            return np.stack([np.outer(text, [1.0, -1.0, 0.5]).astype(np.float32).ravel() for text in texts])
        return np.array([[text.sum(), text[0], text[-1] / 3] for text in texts], dtype=np.float32)

    @property
    def n_rows(self) -> int:
        return sum(map(len, self.batches))


def drawn(n: int, seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    return encoded_rows([rng.integers(0, 5000, rng.integers(1, 9)).tolist() for _ in range(n)])


def ask(cache: VectorCache, encoded: Encoded, rows: list[int] | range) -> tuple[NDArray[np.float32], Encoder]:
    encoder = Encoder(encoded)
    return cache.vectors(encoded, np.array(rows, dtype=np.int64), encoder), encoder


def expected(encoded: Encoded, rows: list[int] | range) -> NDArray[np.float32]:
    return np.concatenate([Encoder(encoded)(np.array([row])) for row in rows])


# --- once -----------------------------------------------------------------------------------------------------------


def test_a_text_is_encoded_once_and_given_in_the_order_that_was_asked_for() -> None:
    encoded, cache = drawn(100), VectorCache({}, None)
    first, encoder = ask(cache, encoded, range(50))
    assert (first == expected(encoded, range(50))).all()
    assert encoder.n_rows == 50
    rows = [70, 3, 3, 49, 99, 70, 0]
    more, encoder = ask(cache, encoded, rows)
    assert (more == expected(encoded, rows)).all()
    assert sorted(row for batch in encoder.batches for row in batch) == [70, 99]
    assert ask(cache, encoded, [])[0].shape == (0, 0)


def test_equal_texts_are_one_text_whatever_their_numbers() -> None:
    encoded, cache = drawn(30), VectorCache({}, None)
    ask(cache, encoded, range(30))
    again = encoded_rows([encoded.row(row).tolist() for row in reversed(range(30))])
    found, encoder = ask(cache, again, range(30))
    assert encoder.n_rows == 0
    assert (found == expected(again, range(30))).all()
    other = Encoded(encoded.ids, 1 - encoded.type_ids, encoded.offsets, 0, 0)
    assert ask(cache, other, range(30))[1].n_rows == 30, "other types of tokens are another text"


def test_texts_that_only_meet_end_to_end_are_two() -> None:
    encoded = encoded_rows([[1, 2], [1, 2, 0], [1], [2, 1, 2], [258], [2, 1]])
    found, encoder = ask(VectorCache({}, None), encoded, range(6))
    assert encoder.n_rows == 6
    assert (found == expected(encoded, range(6))).all()


def test_batches_are_bounded_in_rows_and_tokens() -> None:
    encoded = encoded_rows([[1 + row] * 3 for row in range(100)] + [[7, row, *[5] * 998] for row in range(9)])
    batches = ask(VectorCache({}, None), encoded, range(109))[1].batches
    assert [len(batch) for batch in batches] == [4, 4, 1, 32, 32, 32, 4]


# --- on disk --------------------------------------------------------------------------------------------------------


def test_another_cache_finds_the_blocks_and_encodes_what_they_lack(tmp_path: Path) -> None:
    encoded, one = drawn(80), VectorCache({"origin": "a"}, tmp_path)
    ask(one, encoded, range(60))
    assert not list(tmp_path.glob("*")), "nothing is written before a block is full, or flushed"
    one.flush()
    found, encoder = ask(VectorCache({"origin": "a"}, tmp_path), encoded, range(80))
    assert (found == expected(encoded, range(80))).all()
    assert encoder.n_rows == 20
    # A cache that was there before sees what another wrote since.
    late = VectorCache({"origin": "a"}, tmp_path)
    assert ask(late, encoded, range(60))[1].n_rows == 0
    two = VectorCache({"origin": "a"}, tmp_path)
    ask(two, encoded, range(80))
    two.flush()
    assert ask(late, encoded, range(80))[1].n_rows == 0
    n_files = len(list(tmp_path.glob("*")))
    two.flush()
    assert len(list(tmp_path.glob("*"))) == n_files == 2


def test_blocks_are_written_as_they_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK_ROWS", 32)
    encoded = encoded_rows([[row, 3, 5] for row in range(70)])
    ask(VectorCache({}, tmp_path), encoded, range(70))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert ask(VectorCache({}, tmp_path), encoded, range(70))[1].n_rows == 6, "the last block is not full"


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "gone"])
def test_a_damaged_block_counts_as_absent_and_is_made_again(tmp_path: Path, damage: str) -> None:
    encoded, one = drawn(40), VectorCache({}, tmp_path)
    ask(one, encoded, range(40))
    one.flush()
    (path,) = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "foreign":
        path.write_bytes(data)
        path.rename(path.with_name(f"{path.name[:33]}{'0' * 32}.safetensors"))
    else:
        new = {"cut": data[:-5], "bit": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "empty": b""}[damage]
        path.write_bytes(new)
    again = VectorCache({}, tmp_path)
    found, encoder = ask(again, encoded, range(40))
    assert encoder.n_rows == 40
    assert (found == expected(encoded, range(40))).all()
    again.flush()
    assert ask(VectorCache({}, tmp_path), encoded, range(40))[1].n_rows == 0


def test_values_of_each_token_come_back_in_their_shape(tmp_path: Path) -> None:
    encoded = drawn(50)
    rows = np.array([7, 3, 49, 3, *range(50)])
    caches = [VectorCache({"kind": "tokens"}, tmp_path) for _ in range(2)]
    encoder = Encoder(encoded, ragged=True)
    first = caches[0].ragged(encoded, rows, encoder)
    caches[0].flush()
    silent = Encoder(encoded, ragged=True)
    second = caches[1].ragged(encoded, rows, silent)
    assert (encoder.n_rows, silent.n_rows) == (50, 0)
    for row, one, other in zip(rows, first, second, strict=True):
        assert one.shape == other.shape == (3 * encoded.lengths[row],)
        assert one.tobytes() == other.tobytes()
        assert one.dtype == np.float32


def test_a_kill_between_blocks_keeps_the_finished_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK_ROWS", 16)
    encoded = drawn(120)

    class Killed(Encoder):
        def __call__(self, rows: Rows) -> NDArray[np.float32]:
            if self.n_rows > 70:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(rows)

    pid = os.fork()
    if pid == 0:
        VectorCache({}, tmp_path).vectors(encoded, np.arange(120), Killed(encoded))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found, encoder = ask(VectorCache({}, tmp_path), encoded, range(120))
    assert (found == expected(encoded, range(120))).all()
    assert 0 < encoder.n_rows <= 120 - 71 + 15, "less than a block is done again"


def test_what_was_not_used_for_longest_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for name in ("a", "b", "c"):
        cache = VectorCache({"origin": name}, tmp_path)
        ask(cache, drawn(30), range(30))
        cache.flush()
        sizes.append(max(path.stat().st_size for path in tmp_path.glob("*.safetensors")))
    paths = {name: next(tmp_path.glob(f"{VectorCache({'origin': name}, None)._id}-*")) for name in "abc"}
    for age, name in enumerate(("c", "b", "a")):
        os.utime(paths[name], (1e9 - age, 1e9 - age))
    # The oldest is read, and so is the newest now.
    assert ask(VectorCache({"origin": "a"}, tmp_path), drawn(30), range(30))[1].n_rows == 0
    monkeypatch.setattr(cache_module, "MAX_BYTES", int(3.5 * max(sizes)))
    for name in ("d", "e"):
        cache = VectorCache({"origin": name}, tmp_path)
        ask(cache, drawn(30), range(30))
        cache.flush()
    assert paths["a"].exists()
    assert not paths["b"].exists()
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


# --- whose ----------------------------------------------------------------------------------------------------------


def test_vectors_of_two_identities_never_mix(tmp_path: Path) -> None:
    encoded = drawn(20)
    pooling = {"mode": "mean", "normalize": False, "max_tokens": None}
    base: dict[str, Any] = {"origin": "whole of x", "pooling": pooling, "threads": 1}
    others = [
        {**base, "origin": "cut:2 of x"},
        {**base, "threads": 2},
        *({**base, "pooling": {**pooling, **change}} for change in ({"mode": "first"}, {"normalize": True})),
    ]
    one = cache_of(base, tmp_path)
    ask(one, encoded, range(20))
    one.flush()
    for identity in others:
        cache = cache_of(identity, tmp_path)
        assert cache is not one
        assert ask(cache, encoded, range(20))[1].n_rows == 20
        cache.flush()
    assert ask(VectorCache(base, tmp_path), encoded, range(20))[1].n_rows == 0
    assert ask(VectorCache({**base, "origin": "new"}, tmp_path), encoded, range(20))[1].n_rows == 20


def test_the_caches_used_last_stay_in_memory() -> None:
    encoded = drawn(5)
    one = cache_of({"origin": 0})
    for i in range(1, 8):
        ask(cache_of({"origin": i}), encoded, range(5))
        assert cache_of({"origin": 0}) is one, "in use all the time"
    assert len(cache_module._caches) == cache_module._MOST_CACHES
    assert ask(cache_of({"origin": 7}), encoded, range(5))[1].n_rows == 0
    assert ask(cache_of({"origin": 1}), encoded, range(5))[1].n_rows == 5


def test_a_named_folder_comes_before_that_of_a_step(tmp_path: Path) -> None:
    keep_in(tmp_path / "store")
    cache = cache_of({"origin": "a"}, tmp_path / "step")
    ask(cache, drawn(3), range(3))
    cache.flush()
    assert list((tmp_path / "store").iterdir())
    assert not (tmp_path / "step").exists()


# --- a sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("small"), texts, n_layers=2))


class Forwards:
    """Counts the texts and tokens that go through pooled encoders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_texts = self.n_tokens = 0
        pool = PooledModel.pool

        def counted(model: PooledModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            self.n_texts += len(inputs["input_ids"])
            self.n_tokens += int(inputs["attention_mask"].sum())
            return pool(model, inputs)

        monkeypatch.setattr(PooledModel, "pool", counted)


def sweep(ref: str, out: Path, *, seeds: int = 3) -> list[CountingMeter]:
    """Probes of several seeds and numbers of labels, each evaluated, asked for answers, and learnt from."""
    meters = []
    found = sentences(60, seed=1)
    rows, answers = [(text,) for text, _ in found], [FORM.labels[label] for _, label in found]
    dev = DevTexts([(text,) for text, _ in sentences(20, seed=2)], lambda answers: float(len(answers)))
    test = [(text,) for text, _ in sentences(25, seed=3)]
    for seed in range(seeds):
        for n in (20, 60):
            meter = CountingMeter()
            folder = out / f"{seed}-{n}"
            folder.mkdir(parents=True)
            settings = SETTINGS.changed({"seed": seed})
            context = TrainContext(meter, out / "work")
            more: dict[str, Any] = {"dev": dev, "context": context}
            finetune(ModelSpec(ref, ref, FORM, seed), rows[:n], answers[:n], settings, out=folder, **more)
            assert len(predict(folder, test, precision="fp32", meter=meter).answers) == 25
            taught = teach(
                folder, test, target="classes", settings=TeachSettings(), precision="fp32", meter=CountingMeter()
            )
            student = out / f"student-{seed}-{n}"
            student.mkdir()
            spec = ModelSpec(ref, ref, FORM, seed, target="classes")
            distil(spec, test, taught, settings, out=student, **more)
            meters.append(meter)
    return meters


def test_a_sweep_encodes_every_text_once_and_a_new_process_none(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = Forwards(monkeypatch)
    keep_in(tmp_path / "vectors")
    meters = sweep(small, tmp_path / "one")
    texts = {text for n, seed in ((60, 1), (20, 2), (25, 3)) for text, _ in sentences(n, seed)}
    assert forwards.n_texts == len(texts)
    assert forwards.n_tokens == sum(len(text.split()) + 2 for text in texts)
    # What is charged does not depend on what was known.
    assert meters[0].n_inferred == meters[2].n_inferred == meters[4].n_inferred > 0
    forget()
    keep_in(tmp_path / "vectors")
    before = forwards.n_texts
    again = sweep(small, tmp_path / "two", seeds=1)
    assert forwards.n_texts == before
    assert [meter.n_inferred for meter in again] == [meter.n_inferred for meter in meters[:2]]
    for name in ("head.safetensors", "model.safetensors"):
        one, two = ((tmp_path / folder / "0-60" / name).read_bytes() for folder in ("one", "two"))
        assert one == two


def test_another_encoder_or_pooling_is_encoded_anew(
    small: str, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(make_checkpoint(tmp_path / "other", texts, n_layers=2, seed=9))
    forwards = Forwards(monkeypatch)
    rows = [(text,) for text, _ in sentences(12, seed=1)]

    def fitted(ref: str, base: str, **changes: Any) -> int:
        before = forwards.n_texts
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        settings, context = SETTINGS.changed(changes), TrainContext(CountingMeter(), tmp_path / "work")
        spec = ModelSpec(ref, base, FORM, 0)
        finetune(spec, rows, ["bad", "good"] * 6, settings, dev=None, out=out, context=context)
        return forwards.n_texts - before

    n = len({text for (text,) in rows})
    asked: list[tuple[str, str, dict[str, Any]]] = [
        (small, small, {}),
        (other, other, {}),
        ("cut:1", small, {}),
        (small, small, {"pooling": "first"}),
    ]
    assert [fitted(ref, base, **changes) for ref, base, changes in asked] == [n] * 4
    assert [fitted(ref, base, **changes) for ref, base, changes in asked] == [0] * 4
    # Said and not done: threads of their own would wait busily ever after.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert fitted(small, small) == n
