"""Files of a handed-over model as a hub gets them: no rows, no path of a task, the name of the repository in the card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from outlay.errors import UnknownModel
from outlay.export.loading_lines import hub_lines, loading_lines
from outlay.export.model_card import use_section
from outlay.export.model_dir import CARD_FILE, handed_over, head_file, model_folder
from outlay.models.reference import CHECKPOINT_PATTERNS, HEAD_FILE, weight_files
from outlay.storage.files import json_text
from outlay.storage.paths import command_line
from outlay.tasks.row_form import RowForm

_TEXTS = ("vocab.txt", "merges.txt")
"""Text files of tokenizers; any other one may be somebody's rows."""
_PATTERNS = (CARD_FILE, "*.jinja", *_TEXTS, *(pattern for pattern in CHECKPOINT_PATTERNS if pattern != "*.txt"))
_MODULE_FILE = re.compile(r"\d+_[A-Z]\w*/config\.json")
"""Configuration of a module of `sentence-transformers`, such as ``1_Pooling/config.json``."""
_VOCABULARY = "vocabulary.json"
"""Words of a TF-IDF model."""
_PATH = re.compile(r"(?<![\w.:/~$-])(?:/[^\s/\"'`|<>:;,()\[\]]+){2,}")
"""A text that reads like an absolute path of two names at least."""
_N_SHOWN = 3


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Files to send to a repository.

    ``repo``: NAME or OWNER/NAME; ``files``: by name in the repository, the file itself, or its bytes where they differ from those
    of the folder; ``loading``: lines of Python that load the model from the hub; ``notes``: on what others will read in them.
    """

    folder: Path
    repo: str
    revision: str | None
    why: str
    files: Mapping[str, Path | bytes]
    loading: str
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its name in the repository."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    @property
    def fetch(self) -> str:
        """Command that copies the model from the hub into a folder of its name."""
        return fetch_command(self.repo, self.revision, self._name)

    @property
    def predict(self) -> str:
        """Command that answers new rows with that copy."""
        return command_line("outlay", "predict", self._name, "--file", "new.csv")

    @property
    def _name(self) -> str:
        return self.repo.rpartition("/")[2]


def is_model_file(name: str) -> bool:
    """Return whether a file of a folder or repository, named by its path there, is a part of the model or its card."""
    if "/" in name:
        return _MODULE_FILE.fullmatch(name) is not None
    return not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def hub_files(folder: Path, repo: str, revision: str | None = None) -> HubFiles:
    """Return the files of a handed-over model for a repository.

    Files that are no part of it, such as those of `outlay evaluate`, which hold rows, are left out. ``outlay.json`` goes without
    the path of the task file, and the lines of the card have the name of the repository in the place of ``MODEL``.

    ``folder``: of the model, or of the results that handed it over.

    Raises:
        UnknownModel: there is no model with a card.
    """
    model = model_folder(folder)
    document, identity = head_file(model), handed_over(model)
    if identity is None or not (model / CARD_FILE).is_file():
        raise UnknownModel(
            f"{model} has no card, as models of single steps have none; push one that `outlay run` or `outlay compare` handed "
            "over, OUT/model"
        )
    weight_files(model)
    paths = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {name: path for name, path in paths.items() if is_model_file(name)}
    files[HEAD_FILE] = json_text(_without_path(document)).encode()
    local = loading_lines(document, RowForm.from_json(document["rows"]))
    loading = hub_lines(local, repo, revision)
    card = (model / CARD_FILE).read_text(encoding="utf-8")
    use = use_section(loading, fetch_command(repo, revision, "FOLDER"))
    card = card.replace(use_section(local), use)
    files[CARD_FILE] = card.encode()
    notes = _notes(card, files, [name for name in paths if name not in files])
    if use not in card:
        notes.append(f"the section Use of {CARD_FILE} is not as `outlay` writes it, and is sent as it is")
    return HubFiles(model, repo, revision, identity["why"], files, loading, tuple(notes))


def fetch_command(repo: str, revision: str | None, folder: str) -> str:
    """Return the command of `huggingface_hub` that copies a repository into a folder."""
    branch = [] if revision is None else ["--revision", revision]
    return command_line("hf", "download", repo, *branch, "--local-dir", folder)


def _without_path(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``outlay.json`` without the task of the model, where that is a file."""
    known = document["handed_over"]
    is_name = "/" not in str(known.get("task", ""))
    return {**document, "handed_over": {key: value for key, value in known.items() if key != "task" or is_name}}


def _notes(card: str, files: Mapping[str, object], left_out: list[str]) -> list[str]:
    notes = [f"the card, {CARD_FILE}, holds the receipt with its prices, and the names of labels and of data files"]
    if paths := paths_of_here(card):
        notes.append(
            f"the card names paths of this machine: {_listed(paths)}; edit {CARD_FILE} where they should not be read"
        )
    if _VOCABULARY in files:
        notes.append(f"{_VOCABULARY} holds the words and pairs of words of the training texts")
    if left_out:
        notes.append(f"not sent, since they are no part of the model: {_listed(left_out)}")
    return notes


def paths_of_here(text: str) -> list[str]:
    """Return what a text names by an absolute path of this machine: those whose first two folders exist here."""
    found = dict.fromkeys(_PATH.findall(text))
    return [name for name in found if Path(*Path(name).parts[:3]).exists()]


def _listed(names: list[str]) -> str:
    more = len(names) - _N_SHOWN
    return ", ".join(names[:_N_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
