"""The folder of a handed-over model: a trained student in the form that other libraries load, with its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import UnknownModel, UsageError
from outlay.models.reference import HEAD_FILE, HELD_OUT_FILE
from outlay.storage.artifact import MANIFEST
from outlay.storage.files import write_json, write_text

if TYPE_CHECKING:
    from outlay.tasks.row_form import RowForm

MODEL_DIR = "model"
"""Name of the folder below a results folder."""
CARD_FILE = "README.md"
_OURS_ALONE = (MANIFEST, "used", "training.json", HELD_OUT_FILE)
"""Files of an artifact that are of no use elsewhere; the last one holds training texts, which a model must not carry."""


def model_folder(path: Path) -> Path:
    """Return the folder of the model that a path names: itself, or the model that was handed over in a results folder."""
    inside = path / MODEL_DIR
    return inside if not (path / HEAD_FILE).exists() and (inside / HEAD_FILE).exists() else path


def bytes_of(folder: Path) -> int:
    """Return the bytes of the files of a model."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def handed_over(folder: Path) -> dict[str, Any] | None:
    """Return what `export_model` noted of the model in a folder: its run, its artifact; ``None`` where there is none."""
    try:
        found: dict[str, Any] | None = head_file(folder).get("handed_over")
    except UnknownModel:
        return None
    return found


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something else than a model that was handed over.

    Raises:
        UsageError: it does.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and handed_over(folder) is None)):
        raise UsageError(
            f"{folder} is where the model is handed over, and holds something else; move it away, or choose another --out"
        )


def export_model(artifact: Path, folder: Path, rows: RowForm, identity: Mapping[str, Any], card: str) -> None:
    """Write a model folder whole or not at all, in the place of one that was handed over before.

    ``artifact``: folder of the trained student in the store, which is copied; ``identity``: see `handed_over`.

    Raises:
        UsageError: as `check_place`.
    """
    check_place(folder)
    new = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for path in sorted(artifact.iterdir()):
            if path.is_file() and path.name not in _OURS_ALONE:
                shutil.copyfile(path, new / path.name)
        document = head_file(new)
        write_json(new / HEAD_FILE, {**document, "rows": rows.to_json(), "handed_over": dict(identity)})
        _fit_to_other_libraries(new, document)
        write_text(new / CARD_FILE, card)
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fit_to_other_libraries(folder: Path, document: Mapping[str, Any]) -> None:
    """Limit the tokenizer to the texts the model was trained on, and lay out what `sentence-transformers` reads."""
    limit, own = document["form"]["max_source_tokens"], document.get("head")
    if own is not None and "pooling" in own:
        from outlay.models.loading import saved_head
        from outlay.models.pooled import PooledHead, write_modules

        head, _ = saved_head(folder)
        assert isinstance(head, PooledHead)
        # The store keeps files alone: folders of modules are made anew.
        write_modules(folder, head)
        limit = head.limit
    path = folder / "tokenizer_config.json"
    if path.exists():
        tokenizer, model = (json.loads(each.read_text(encoding="utf-8")) for each in (path, folder / "config.json"))
        # A tokenizer of no class of its own does not tell two texts apart unless it is told to.
        if model.get("type_vocab_size", 0) > 1:
            tokenizer.setdefault("model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
        write_json(path, {**tokenizer, "model_max_length": limit})


def head_file(folder: Path) -> dict[str, Any]:
    """Return the content of a model's ``outlay.json``.

    Raises:
        UnknownModel: there is none.
    """
    try:
        document: dict[str, Any] = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UnknownModel(
            f"{folder} holds no model that `outlay` trained ({HEAD_FILE} is missing); make one with `outlay run` or "
            "`outlay finetune`"
        ) from None
    return document
