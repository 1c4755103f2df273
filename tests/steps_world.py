"""Three small tasks in files, and tiny models of each family: what the tests of the single steps share."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.standalone.request import Data
from outlay.standalone.runtime import RuntimeOptions
from outlay.standalone.training import TrainingRequest
from tests.checkpoints import make_checkpoint, make_t5

ACTIONS, REAGENTS, FILLERS = (
    ("mix", "heat", "stir"),
    ("salt", "water", "acid"),
    ("the", "with", "and", "then", "slowly"),
)
TONES = {"bad": ("awful", "dull"), "good": ("lovely", "bright")}
KINDS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification", "labels": tuple(TONES)},
    "entities": {"kind": "entities", "labels": ("Action", "Reagent")},
    "generation": {"kind": "generation"},
}


def row(kind: str, rng: random.Random) -> dict[str, str]:
    """One row: tone words decide a class, actions and reagents are entities, the reagent is what a question asks for."""
    filler = rng.choices(FILLERS, k=rng.randint(1, 6))
    if kind == "classification":
        label = rng.choice(sorted(TONES))
        return {"source": " ".join([*filler, rng.choice(TONES[label])]), "target": label}
    action, reagent = rng.choice(ACTIONS), rng.choice(REAGENTS)
    source = " ".join([action, *filler, reagent])
    return {"source": source, "target": f"{action} [Action] {reagent} [Reagent]" if kind == "entities" else reagent}


def rows(kind: str, n: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(f"{kind}:{seed}")
    return [row(kind, rng) for _ in range(n)]


def write_rows(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    """In the form that the suffix says; ``.json`` as one list."""
    name, data = path.name.removesuffix(".gz"), ""
    if name.endswith(".jsonl"):
        data = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found)
    elif name.endswith(".json"):
        data = json.dumps(found)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
        data = path.with_name(name).read_text(encoding="utf-8")
    raw = data.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@dataclass(frozen=True)
class StepsWorld:
    """Files ``KIND-train.jsonl``, ``KIND-dev.jsonl`` and ``KIND-pool.jsonl`` (without targets); models ``bert`` and ``t5``."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> StepsWorld:
        words: list[str] = []
        for kind in KINDS:
            for split, n in (("train", 37), ("dev", 13), ("pool", 29)):
                found = rows(kind, n, seed=n)
                words += [text for each in found for text in each.values()]
                kept = [{"source": each["source"]} for each in found] if split == "pool" else found
                write_rows(root / f"{kind}-{split}.jsonl", kept)
        make_checkpoint(root / "bert", words, n_layers=2, hidden_size=16)
        make_t5(root / "t5", words, n_layers=2, hidden_size=16)
        make_t5(root / "small", words, n_layers=1, hidden_size=16, seed=1, vocab_extra=3)
        return cls(root)

    def file(self, kind: str, split: str) -> Path:
        return self.root / f"{kind}-{split}.jsonl"

    def model(self, name: str) -> str:
        return str(self.root / name)

    def recipe(
        self,
        kind: str,
        model: str,
        out: Path,
        *,
        file: Path | None = None,
        runtime: RuntimeOptions | None = None,
        **overrides: Any,
    ) -> TrainingRequest:
        """Two quick epochs with a dev set; ``distill`` reads the question from the targets and takes no ``file``."""
        settings = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32", "patience": None}
        return TrainingRequest(
            model=self.model(model),
            out=out,
            data=Data(
                file=file, dev_file=self.file(kind, "dev"), **KINDS[kind], max_source_tokens=24, max_target_tokens=12
            ),
            overrides={**settings, **overrides},
            runtime=runtime or RuntimeOptions(threads=1),
        )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; of a summary what does not depend on the clock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name.endswith("summary.json"):
                summary = json.loads(data)
                data = json.dumps({name: value for name, value in summary.items() if name != "seconds"}).encode()
            found[str(path.relative_to(folder))] = data
    return found
