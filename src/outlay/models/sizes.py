"""Sizes of models by name: the shapes that `outlay model make` builds, from ``sizes.yaml`` or a file of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from outlay.errors import MissingData, UnknownModel
from outlay.models.reference import tiny_n_heads
from outlay.spec import Family
from outlay.text.legible import did_you_mean
from outlay.text.text_file import read_text

ModelType = Literal["t5", "bert", "distilbert", "gpt2"]

FAMILY_OF_TYPE: Mapping[str, Family] = {"t5": "seq2seq", "bert": "encoder", "distilbert": "encoder", "gpt2": "causal"}
TINY_N_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Size:
    """Everything about an architecture that decides its parameters.

    ``n_layers``: of the encoder, or of the only stack; ``hidden_size``: width; ``d_ff``: width inside a feed-forward layer;
    ``head_size``: width of one of ``n_heads`` attention heads; ``n_positions``: the longest text, 0 for relative positions (t5).
    """

    name: str
    type: ModelType
    n_layers: int
    hidden_size: int
    d_ff: int
    n_heads: int
    vocab_size: int
    head_size: int
    n_decoder_layers: int = 0
    n_positions: int = 0

    @property
    def family(self) -> Family:
        """The family its models belong to."""
        return FAMILY_OF_TYPE[self.type]

    def __post_init__(self) -> None:
        if self.type not in FAMILY_OF_TYPE:
            raise UnknownModel(
                f"size {self.name!r}: type is {self.type!r}; it must be one of {', '.join(FAMILY_OF_TYPE)}"
            )
        has = {"n_decoder_layers": self.type == "t5", "n_positions": self.type != "t5"}
        for field in fields(self)[2:]:  # numbers, all but the name and the type
            value = getattr(self, field.name)
            least = int(has.get(field.name, True))
            if type(value) is not int or value < least:
                raise UnknownModel(
                    f"size {self.name!r}: {field.name} is {value!r}; it must be a whole number from {least} up"
                )
            if value and not least:
                raise UnknownModel(f"size {self.name!r}: a {self.type} model has no {field.name}; remove it")
        if self.type != "t5" and self.n_heads * self.head_size != self.hidden_size:
            raise UnknownModel(
                f"size {self.name!r}: {self.n_heads} heads of {self.head_size} do not make width {self.hidden_size}; "
                "choose n_heads that divides hidden_size"
            )


def tiny_size(family: Family, n_layers: int, hidden_size: int, vocab_size: int) -> Size:
    """Return the size that ``tiny:LxH`` means beside a base of ``family`` with ``vocab_size`` rows.

    Encoder: a BERT of L layers, 4 H inside. Seq2seq: a T5 v1.1 of L encoder and L decoder layers, 2 H inside (as its small
    size has). Both with heads as `tiny_n_heads` gives.

    Raises:
        UnknownModel: a causal family.
    """
    if family == "causal":
        raise UnknownModel(
            f"tiny:{n_layers}x{hidden_size} needs an encoder or a seq2seq base, but its base is a causal model; "
            "build one with `outlay model make`"
        )
    is_t5 = family == "seq2seq"
    return Size(
        name=f"tiny:{n_layers}x{hidden_size}",
        type="t5" if is_t5 else "bert",
        n_layers=n_layers,
        hidden_size=hidden_size,
        d_ff=(2 if is_t5 else 4) * hidden_size,
        n_heads=tiny_n_heads(hidden_size),
        vocab_size=vocab_size,
        head_size=hidden_size // tiny_n_heads(hidden_size),
        n_decoder_layers=n_layers if is_t5 else 0,
        n_positions=0 if is_t5 else TINY_N_POSITIONS,
    )


def load_sizes(extra: Sequence[Path] = ()) -> dict[str, Size]:
    """Return the shipped sizes, then those of the user's files (later ones win), by name.

    Raises:
        UnknownModel: a file that cannot be read, or a size that is wrong; one line that names it.
    """
    shipped = resources.files("outlay.models") / "sizes.yaml"
    sizes = _sizes_of("sizes.yaml", shipped.read_text(encoding="utf-8"))
    for path in extra:
        try:
            text = read_text(Path(path))
        except MissingData as error:
            raise UnknownModel(f"cannot read the file of sizes: {error}") from None
        sizes |= _sizes_of(str(path), text)
    return sizes


def find_size(name: str, extra: Sequence[Path] = ()) -> Size:
    """Return the size of a name.

    Raises:
        UnknownModel: no such size; lists the known ones. Also as `load_sizes`.
    """
    sizes = load_sizes(extra)
    if name not in sizes:
        raise UnknownModel(
            f"no size {name!r}{did_you_mean(name, sizes)}; known: {', '.join(sizes)}; add it with a file of your own (--sizes)"
        )
    return sizes[name]


def _sizes_of(origin: str, text: str) -> dict[str, Size]:
    from outlay.text.yaml_text import BadYaml, parse_yaml, plain

    try:
        document = plain(parse_yaml(text))
    except BadYaml as error:
        line = f" line {error.line}" if error.line is not None else ""
        raise UnknownModel(
            f"{origin}{line}: not readable as YAML ({error}); write `NAME: {{type: t5, n_layers: 2, ...}}`"
        ) from None
    if not isinstance(document, dict):
        raise UnknownModel(f"{origin}: holds no sizes by name; write `NAME: {{type: t5, n_layers: 2, ...}}`")
    return {str(name): _size_of(origin, str(name), record) for name, record in document.items()}


def _size_of(origin: str, name: str, record: object) -> Size:
    if not isinstance(record, dict):
        raise UnknownModel(f"{origin}: size {name!r} is {record!r}, not keys and values")
    values: dict[str, Any] = {str(key): value for key, value in record.items()}
    known = {field.name for field in fields(Size)} - {"name"}
    needed = known - {"head_size", "n_decoder_layers", "n_positions"}
    if wrong := sorted(set(values) - known):
        raise UnknownModel(
            f"{origin}: size {name!r} has an unknown key {wrong[0]!r}; allowed: {', '.join(sorted(known))}"
        )
    if missing := sorted(needed - set(values)):
        raise UnknownModel(f"{origin}: size {name!r} lacks {missing[0]!r}; needed: {', '.join(sorted(needed))}")
    if "head_size" not in values:
        width, n_heads = values["hidden_size"], values["n_heads"]
        if type(width) is not int or type(n_heads) is not int or n_heads <= 0 or width % n_heads:
            raise UnknownModel(
                f"{origin}: size {name!r}: {n_heads!r} heads do not divide width {width!r}; choose others, or give head_size"
            )
        values["head_size"] = width // n_heads
    return Size(name=name, **values)
