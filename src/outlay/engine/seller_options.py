"""Sellers of a request: those of its task, with what a user says of them in place of the file's words, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from outlay.engine.sellers import normal, spec_of
from outlay.errors import UsageError
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import HUMAN, LLM
from outlay.tasks.seller_blocks import FREE, LLM_NAME, PEOPLE, FilesSeller, OpenAISeller, ReplaySeller, SellerBlock

Sellers = Mapping[str, SellerBlock]
"""Sellers by their names in a task file."""

NO_KEY = "none"
"""In place of a variable: the endpoint takes no key."""
_EXAMPLES = ("none", "fixed", "shuffled", "nearest")


def sellers_of(
    sellers: Sellers,
    named: Sellers,
    people: ReplayOptions,
    llm: Mapping[str, Any],
    replayed_llm: ReplayOptions | None,
) -> tuple[SellerSpec, ...]:
    """Return the sellers that a request names beside those of its task.

    Args:
        sellers: those of the task file.
        named: others, which take the place of those of their names.
        people: options of people who replay gold labels, as far as they are not the defaults.
        llm: options of a language model, in place of its keys.
        replayed_llm: options of one that is replayed in its place.

    Raises:
        UsageError: options that exclude each other, or none of the model; one line.
    """
    if llm and replayed_llm is not None:
        raise UsageError(
            "--llm asks a language model and --llm-error-rate replays one from gold labels; give one of the two"
        )
    known = {**sellers, **named}
    found = {spec.name: spec for spec in (spec_of(name, block) for name, block in named.items())}
    found[HUMAN] = _people(known.get(PEOPLE), people) or found.get(HUMAN, SellerSpec())
    if replayed_llm is not None:
        found[LLM] = SellerSpec(LLM, replayed_llm)
    elif llm:
        found[LLM] = llm_of(known, llm)
    return tuple(found.values())


def llm_of(sellers: Sellers, given: Mapping[str, Any], way_out: str = "name it with --llm") -> SellerSpec:
    """Return the language model among some sellers, with options in place of its keys.

    A price goes with its model: another model takes its own, unless the file's says that a server of one's own is free.
    ``way_out``: how a model is named.

    Raises:
        UsageError: no model, an unknown option, or a value outside its limits; one line.
    """
    block = sellers.get(LLM_NAME)
    known = block.model_dump(exclude={"kind"}, exclude_defaults=True) if isinstance(block, OpenAISeller) else {}
    is_other = any(given.get(name, known.get(name)) != known.get(name) for name in ("model", "base_url"))
    if is_other and ("base_url" in given or known.get("price_item") != FREE):
        known.pop("price_item", None)
    chosen = {**known, **given}
    if "model" not in chosen:
        raise UsageError(f"no language model is named, here or in the task file; {way_out}")
    return normal(SellerSpec.of(LLM, "openai", chosen))


def example_options(text: str) -> dict[str, Any]:
    """Read a choice of examples with its number, such as ``nearest:8``, as options of a language model.

    Raises:
        UsageError: an unknown choice, or no number.
    """
    choice, colon, number = text.partition(":")
    if choice not in _EXAMPLES or (colon and not (number.isascii() and number.isdigit())):
        raise UsageError(
            f"the examples are {text!r}; say {', '.join(_EXAMPLES)}, all but the first with a number behind a colon if you "
            "like, such as nearest:8"
        )
    if colon and choice == "none":
        raise UsageError(f"the examples are {text!r}, and `none` takes no number; leave one of the two out")
    return {"examples": choice} | ({"n_examples": int(number)} if colon else {})


def _people(block: SellerBlock | None, given: ReplayOptions) -> SellerSpec | None:
    """Return people with options in place of their keys; ``None`` where no option is given."""
    plain = asdict(ReplayOptions())
    changed = {name: value for name, value in asdict(given).items() if value != plain[name]}
    if not changed:
        return None
    if block is None or isinstance(block, ReplaySeller):
        known = {} if block is None else block.model_dump(exclude={"kind"}, exclude_defaults=True)
        return SellerSpec(HUMAN, ReplayOptions(**{**known, **changed}))
    if set(changed) == {"redundancy"} and isinstance(block, FilesSeller):
        known = block.model_dump(exclude={"kind"}, exclude_defaults=True)
        return normal(SellerSpec.of(HUMAN, "files", {**known, **changed}))
    raise UsageError(
        f"people are of kind {block.kind} here, and --label-error-rate, --redundancy and --seconds-per-label are of people who "
        "replay gold labels; leave them out"
    )
