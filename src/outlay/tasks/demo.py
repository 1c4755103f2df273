"""A generated task for the demo: help-desk messages over twelve intents, with no file to fetch.

The wording stands in ``demo_grammar.txt``. Every choice prefers early lines, so a few hundred labels meet the common
wordings and miss most of the long tail; a pretrained encoder that knows what words mean reads the tail better than a
shallow cut of it. Intents have near-misses ("cancel my order" against "cancel my subscription"), asides carry words of
other intents, and a share of the train labels is wrong, mostly towards a neighbour.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path

from outlay.errors import UsageError
from outlay.storage.files import write_bytes, write_text
from outlay.storage.hashing import digest_of

# Exponents of the preference for early alternatives: index = floor(n * u ** skew) for u uniform on [0, 1).
WORDING_SKEW = 1.25
ALTERNATIVE_SKEW = 1.3

DEFAULT_NOISE = 0.03

# At 0.20 dollars a label: 180 labels for the teacher and the rest for compute, or 240 labels for the student. A student of one
# layer, made from random weights so that all it knows was bought, two blocks of the pool and few dev rows show the point in
# minutes on two cores that have neither AVX-512 nor bf16.
DEMO_BUDGET = "48"
DEMO_N_INITIAL = 180
DEMO_POOL_ROWS = 1536
DEMO_N_DEV = 96
DEMO_STUDENT = "tiny:1x192"
DEMO_SEEDS = 3
"""Seeds of what takes seconds."""

P_OPENER = 0.4
P_CLOSER = 0.35
P_ASIDE = 0.4
P_TYPO = 0.25
P_NEIGHBOUR_ERROR = 0.7  # of the wrong labels, the share that names a neighbour and not just any other intent

MAX_TRIES_PER_MESSAGE = 200

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_NAME = re.compile(r"\$([a-z]+)")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One message with its label."""

    message: str
    label: str


@dataclass(frozen=True, slots=True)
class DemoSplits:
    """The generated rows; no message stands twice, within a split or across them. The pool has no labels."""

    train: tuple[DemoRow, ...]
    dev: tuple[DemoRow, ...]
    test: tuple[DemoRow, ...]
    pool: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Shared lists, the wordings of each intent in the order of the file, and the intents that each is mistaken for."""

    lists: Mapping[str, Sequence[str]]
    wordings: Mapping[str, Sequence[str]]
    neighbours: Mapping[str, Sequence[str]]

    @property
    def intents(self) -> tuple[str, ...]:
        """The label set, in the order of the file."""
        return tuple(self.wordings)


@cache
def grammar() -> Grammar:
    """Return the grammar that ships with the package."""
    return parse_grammar(resources.files("outlay.tasks").joinpath("demo_grammar.txt").read_text(encoding="utf-8"))


def parse_grammar(text: str) -> Grammar:
    """Return the grammar of a text in the notation that the head of ``demo_grammar.txt`` describes."""
    lists: dict[str, list[str]] = {}
    wordings: dict[str, list[str]] = {}
    neighbours: dict[str, list[str]] = {}
    section: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("@"):
            section = lists.setdefault(line[1:], [])
        elif line.startswith("= "):
            intent, _, others = line[2:].partition(" : ")
            section = wordings.setdefault(intent, [])
            neighbours[intent] = others.split()
        elif line and not line.startswith("# "):
            section.append(line)
    return Grammar(lists, wordings, neighbours)


def generate(
    seed: int,
    n_train: int = 2000,
    n_dev: int = 240,
    n_test: int = 1000,
    n_pool: int = 4000,
    noise: float = DEFAULT_NOISE,
) -> DemoSplits:
    """Return the splits of one seed, the same on every platform and Python version (only ``Random.random`` is drawn).

    The splits come from one stream of distinct messages with the intents in turn, so each is balanced. ``noise`` is the
    probability that a train label is wrong; it is drawn apart, so the messages do not depend on it. Dev and test labels
    are right.

    Raises:
        UsageError: a negative size, a noise outside [0, 1), or more messages than the grammar can tell apart.
    """
    if min(n_train, n_dev, n_test, n_pool) < 0 or not 0 <= noise < 1:
        raise UsageError(f"sizes {n_train}, {n_dev}, {n_test}, {n_pool} must be 0 or more and noise {noise} in [0, 1)")
    rows = _distinct_rows(random.Random(seed), n_train + n_dev + n_test + n_pool)
    test, rest = rows[:n_test], rows[n_test:]
    dev, rest = rest[:n_dev], rest[n_dev:]
    train, pool = rest[:n_train], rest[n_train:]
    noisy = _with_errors(train, noise, random.Random(seed + 1))
    return DemoSplits(noisy, dev, test, tuple(row.message for row in pool))


def _distinct_rows(rng: random.Random, n_rows: int) -> tuple[DemoRow, ...]:
    intents = grammar().intents
    seen: set[str] = set()
    rows: list[DemoRow] = []
    for i in range(n_rows):
        intent = intents[i % len(intents)]
        for _ in range(MAX_TRIES_PER_MESSAGE):
            message = _message(rng, intent)
            if message.lower() not in seen:
                break
        else:
            raise UsageError(f"{n_rows} distinct messages are more than the grammar yields; ask for fewer")
        seen.add(message.lower())
        rows.append(DemoRow(message, intent))
    return tuple(rows)


def _with_errors(rows: Sequence[DemoRow], noise: float, rng: random.Random) -> tuple[DemoRow, ...]:
    noisy = []
    for row in rows:
        # Three draws per row whatever the noise, so that a row's wrong label does not depend on the rows before it.
        is_wrong, is_neighbour, place = rng.random() < noise, rng.random() < P_NEIGHBOUR_ERROR, rng.random()
        near = grammar().neighbours[row.label]
        others = near if is_neighbour else [intent for intent in grammar().intents if intent != row.label]
        noisy.append(DemoRow(row.message, others[math.floor(len(others) * place)]) if is_wrong else row)
    return tuple(noisy)


def _message(rng: random.Random, intent: str) -> str:
    lists = grammar().lists
    parts = [_expand(rng, _pick(rng, grammar().wordings[intent], WORDING_SKEW))]
    if rng.random() < P_ASIDE:
        aside = _expand(rng, _pick(rng, lists["aside"], 1.0))
        parts = [aside, *parts] if rng.random() < 0.5 else [parts[0].rstrip(".") + ".", aside]
    if rng.random() < P_OPENER:
        parts.insert(0, _pick(rng, lists["opener"], ALTERNATIVE_SKEW))
    if rng.random() < P_CLOSER:
        parts.append(_pick(rng, lists["closer"], ALTERNATIVE_SKEW))
    message = " ".join(parts)
    if rng.random() < P_TYPO:
        message = _mistype(rng, message)
    return _dress(rng, message)


def _pick(rng: random.Random, alternatives: Sequence[str], skew: float) -> str:
    return alternatives[math.floor(len(alternatives) * math.pow(rng.random(), skew))]


def _expand(rng: random.Random, wording: str) -> str:
    while match := _BRACKET.search(wording):
        chosen = _pick(rng, match[1].split("|"), ALTERNATIVE_SKEW)
        wording = wording[: match.start()] + chosen + wording[match.end() :]
    while match := _NAME.search(wording):
        chosen = _pick(rng, grammar().lists[match[1]], ALTERNATIVE_SKEW)
        wording = wording[: match.start()] + chosen + wording[match.end() :]
    return re.sub(r" +(?=[ .,?]|$)", "", wording)


def _mistype(rng: random.Random, message: str) -> str:
    """Make one typing error inside a word: two letters swapped, one lost or one doubled."""
    places = [i for i in range(1, len(message) - 2) if message[i - 1 : i + 2].isalpha()]
    if not places:
        return message
    i = places[math.floor(len(places) * rng.random())]
    swapped = message[i + 1] + message[i] if message[i + 1].isalpha() else message[i : i + 2]
    slip = _pick(rng, [swapped, message[i + 1], message[i] + message[i : i + 2]], 1.0)
    return message[:i] + slip + message[i + 2 :]


def _dress(rng: random.Random, message: str) -> str:
    """Return how people type: with a capital, without stops, in haste or all in capitals."""
    style = rng.random()
    if style < 0.45:
        return message[0].upper() + message[1:]
    if style < 0.75:
        return message
    if style < 0.95:
        return re.sub(r"[.,?]", "", message)
    return message.upper()


_TASK_FILE = """\
# Written by `outlay demo`: generated help-desk messages (outlay/tasks/demo_grammar.txt), seed {seed}, label noise {noise}.
name: demo
description: Which of twelve things does a customer ask the help desk for?
kind: classification
text: "{{message}}"
segments: [message]
labels: [{labels}]
metric: accuracy
price_item: label/demo
max_source_tokens: 64
max_target_tokens: 8
dev: given
data:
  train: {{file: train.jsonl, target: label, rows: {n_train}, sha256: {train}}}
  dev: {{file: dev.jsonl, target: label, rows: {n_dev}, sha256: {dev}}}
  test: {{file: test.jsonl, target: label, rows: {n_test}, sha256: {test}}}
pool:
  - {{name: train, split: train}}
  - {{name: messages, file: pool.jsonl, rows: {n_pool}, sha256: {pool}}}
training:
  teacher: {{epochs: 6, learning_rate: 3.0e-4, batch_size: 8}}
  student: {{epochs: 20, learning_rate: 2.0e-3, batch_size: 16}}
  distil: {{epochs: 4, learning_rate: 2.0e-3, batch_size: 32}}
"""


def write_demo(folder: Path, seed: int = 0, noise: float = DEFAULT_NOISE) -> Path:
    """Write the generated splits (JSONL) and their task file into a folder; the same bytes for the same arguments.

    Returns:
        The path of ``task.yaml``.
    """
    splits = generate(seed, noise=noise)
    labelled = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    rows = {name: [asdict(row) for row in split] for name, split in labelled.items()}
    rows["pool"] = [{"message": message} for message in splits.pool]
    values = {"seed": seed, "noise": noise, "labels": ", ".join(grammar().intents)}
    for name, split in rows.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in split).encode()
        write_bytes(folder / f"{name}.jsonl", content)
        values |= {name: digest_of(content), f"n_{name}": len(split)}
    task_file = folder / "task.yaml"
    write_text(task_file, _TASK_FILE.format_map(values))
    return task_file


def demo_story(n_ways: int, label_usd: str) -> str:
    """Return the demo's introduction, in three lines; ``label_usd``: dollars a label."""
    n_labels = int(Decimal(DEMO_BUDGET) / Decimal(label_usd))
    return (
        f"${DEMO_BUDGET} for a tiny classifier of help-desk messages (one layer, random weights):\n"
        f"{n_labels} labels at ${label_usd} for it, or {DEMO_N_INITIAL} for a larger teacher and the compute to\n"
        f"distil what that knows. {n_ways} ways to spend it, minutes in all."
    )
