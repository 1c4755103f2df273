"""Output of a step on disk: its result, its request, and the folder of work under way.

The request is written first, the summary last: a result with a summary is finished. Everything between them is made in the work
folder and renamed, so that the same request goes on after a kill at any moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.storage.files import write_bytes
from outlay.storage.locks import exclusive

REQUEST, SUMMARY, WORK = "request.json", "summary.json", ".work"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OutputDir:
    """Output folder or file of a step.

    ``out``: the folder or file the user named; ``request``, ``summary``: files; ``work``: a folder, removed at the end.
    """

    out: Path
    request: Path
    summary: Path
    work: Path

    @classmethod
    def folder(cls, out: Path) -> OutputDir:
        """Return the output of a step that writes a folder, with request and summary inside."""
        return cls(out, out / REQUEST, out / SUMMARY, out / WORK)

    @classmethod
    def file(cls, out: Path) -> OutputDir:
        """Return the output of a step that writes one file, with request and summary beside it."""
        request, summary, work = (out.with_name(f"{out.name}.{name}") for name in (REQUEST, SUMMARY, "part"))
        return cls(out, request, summary, work)

    @property
    def is_folder(self) -> bool:
        """Return whether the result is a folder."""
        return self.request.parent == self.out

    def check(self, request: Mapping[str, Any], *, overwrite: bool) -> Document | None:
        """Return the summary of a finished equal request, else ``None``; refuse an output in use. Writes nothing.

        Raises:
            UsageError: ``out`` holds another request's result (unless ``overwrite``), or files that no step wrote.
        """
        if self.out.exists() and self.out.is_dir() != self.is_folder:
            wanted, found = ("folder", "file") if self.is_folder else ("file", "folder")
            raise UsageError(f"--out {self.out} is a {found}; name a {wanted}")
        known, asked = self._known(), _plain(request)
        if known is None and self._is_used():
            raise UsageError(f"--out {self.out} holds what no such step wrote; choose another --out")
        if known is not None and known != asked and not overwrite and self._is_begun():
            raise UsageError(
                f"--out {self.out} holds the result of another request ({difference(known, asked)}); "
                f"{_way_on(known, asked)}choose another --out, or add --overwrite"
            )
        return self._finished() if known == asked else None

    def open(self, request: Mapping[str, Any]) -> None:
        """Write the request, once `check` has allowed it; removes the output of another request."""
        known, asked = self._known(), _plain(request)
        if known is not None and known != asked:
            self._clear()
        if known != asked:
            self.write_json(self.request, asked)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the output for one process at a time.

        Raises:
            UsageError: another process holds the lock.
        """
        busy = UsageError(f"another process is at work on --out {self.out}; wait for it to end")
        with exclusive(self.work / "lock", busy):
            yield

    def write(self, path: Path, data: bytes) -> None:
        """Write a file whole or not at all; a kill leaves parts in the work folder only."""
        write_bytes(path, data, sync=True, folder=self.work)

    def write_json(self, path: Path, document: Any) -> None:
        """Write a JSON document, as `write` does."""
        self.write(path, json_bytes(document))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the result as finished, and remove the work folder."""
        self.write_json(self.summary, summary)
        shutil.rmtree(self.work, ignore_errors=True)

    def _known(self) -> Document | None:
        try:
            return read_object(self.request)
        except (OSError, ValueError):
            return None

    def _finished(self) -> Document | None:
        if not self.summary.exists() or not self.out.exists():
            return None
        shutil.rmtree(self.work, ignore_errors=True)
        return read_object(self.summary)

    def _is_used(self) -> bool:
        if not self.is_folder:
            return self.out.exists()
        return self.out.is_dir() and any(path != self.work for path in self.out.iterdir())

    def _is_begun(self) -> bool:
        """Return whether the output holds any work; a request that failed at once left none."""
        kept = [path for path in self.work.rglob("*") if path.is_file() and path.name != "lock"]
        beside = (
            [path for path in self.out.iterdir() if path not in (self.request, self.work)] if self.is_folder else []
        )
        return bool(kept or beside or (not self.is_folder and self.out.exists()))

    def _clear(self) -> None:
        """Remove the output; only called where a request shows that a step of `outlay` wrote it."""
        if self.is_folder:
            shutil.rmtree(self.out)
            return
        shutil.rmtree(self.work, ignore_errors=True)
        for path in (self.out, self.summary, self.request):
            path.unlink(missing_ok=True)


def _plain(request: Mapping[str, Any]) -> Document:
    """Return the request as it reads back from its JSON file."""
    document: Document = json.loads(json.dumps(request))
    return document


def read_object(path: Path) -> Document:
    """Read a JSON object from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds something else.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no JSON object")
    return document


def json_bytes(document: Any) -> bytes:
    """Return a document as indented JSON, with its keys in the order given."""
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def json_lines(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """Return documents as JSON lines."""
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()


def difference(known: Mapping[str, Any], asked: Mapping[str, Any], above: str = "") -> str:
    """Return the first value in which two requests differ, in words."""
    for name in (*known, *(name for name in asked if name not in known)):
        there, here = known.get(name), asked.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            return difference(there, here, f"{above}{name}.")
        return f"{above}{name} is {_shown(there)} there, {_shown(here)} here"
    return "they differ"


def _way_on(known: Document, asked: Document) -> str:
    """Return advice where only the precision differs: another machine may have resolved ``auto`` otherwise."""
    there = known.get("precision") or known.get("settings", {}).get("precision")
    same = {**asked, "precision": there} if "precision" in asked else asked
    if "settings" in asked and "precision" in asked["settings"]:
        same = {**same, "settings": {**asked["settings"], "precision": there}}
    return f"go on with it by --precision {there}, " if same == known else ""


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "something else"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
