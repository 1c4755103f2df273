"""Pooling as a checkpoint declares it: how the vectors of a text's tokens become one. Read without torch.

A checkpoint of `sentence-transformers` declares it in ``modules.json`` and in the folders that it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from outlay.errors import UnknownModel
from outlay.models.reference import parse_ref, resolve_folder
from outlay.models.shape import family_of
from outlay.spec import Family, Reading

PoolingMode = Literal["mean", "first", "last"]

_MODES: Mapping[str, PoolingMode] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
"""Names of `sentence-transformers` for what is pooled here."""
_OLD_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Their keys in the files of versions before it had names."""
_ENDLESS = 2**20
"""Tokens from which on a tokenizer names no limit: those without one write 1e30."""
_FEATURES = {"whole": 1, "joined": 1, "towers": 4}


@dataclass(frozen=True, slots=True)
class Pooling:
    """Pooling of a model: over which tokens, whether vectors are scaled to length 1, and the most tokens it was made for."""

    mode: str = "mean"
    normalize: bool = False
    max_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for keys and for the file beside a model."""
        return asdict(self)


def n_features(hidden_size: int, reading: Reading) -> int:
    """Return the values of a row that a head reads: of towers u, v, \\|u - v\\| and u * v (Conneau et al. 2017, section 3.1)."""
    return hidden_size * _FEATURES[reading]


def pooling_of(ref: str, *, base: str | None = None, mode: str = "declared") -> Pooling:
    """Return the pooling of a model reference; ``cut:`` models have their base's, ``tiny:`` models the mean.

    Where nothing is declared: the last token of a causal model, else the mean of all. ``mode``: in place of the declared one.

    Raises:
        UnknownModel: the reference leads nowhere, or to a checkpoint that declares a pooling which is not known here.
    """
    family = family_of(ref, base=base)
    plain = default_pooling(family) if mode == "declared" else Pooling(mode)
    if parse_ref(ref).kind == "tiny":
        return plain
    return declared_pooling(resolve_folder(ref, base=base), plain, is_mode_given=mode != "declared")


def default_pooling(family: Family) -> Pooling:
    """Return the pooling of a model that declares nothing."""
    return Pooling("last" if family == "causal" else "mean")


def declared_pooling(folder: Path, default: Pooling, *, is_mode_given: bool = False) -> Pooling:
    """Return the pooling that a checkpoint folder declares, or ``default``; ``is_mode_given``: the mode is that of ``default``.

    Raises:
        UnknownModel: a pooling, or a module behind it, that is not known here.
    """
    listed = _read(folder / "modules.json")
    if not isinstance(listed, list):
        return default
    found = default
    for module in listed:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Pooling":
            found = found if is_mode_given else replace(found, mode=_mode_in(folder / path / "config.json"))
        elif kind == "Normalize":
            found = replace(found, normalize=True)
        elif kind != "Transformer" and not is_mode_given:
            raise UnknownModel(
                f"{folder / 'modules.json'} declares a module {kind or module!r} behind the encoder; give pooling mean, first or "
                "last"
            )
    return replace(found, max_tokens=_most_tokens(folder))


def _most_tokens(folder: Path) -> int | None:
    """Return the most tokens of a text that a checkpoint names: since version 6 of `sentence-transformers` its tokenizer does."""
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        document = _read(folder / file)
        limit = document.get(key) if isinstance(document, dict) else None
        if isinstance(limit, int) and 0 < limit < _ENDLESS:
            return limit
    return None


def _mode_in(path: Path) -> PoolingMode:
    config = _read(path) or {}
    named = config.get("pooling_mode")
    names = [named] if isinstance(named, str) else list(named or ())
    names = names or [name for key, name in _OLD_MODES.items() if config.get(key)]
    names += [
        key
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True and key not in _OLD_MODES
    ]
    if len(names) != 1 or names[0] not in _MODES:
        raise UnknownModel(
            f"{path} declares pooling {' and '.join(names) or 'nothing'}; known are {', '.join(_MODES)}; give pooling mean, "
            "first or last"
        )
    return _MODES[names[0]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
