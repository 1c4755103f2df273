"""Probabilities of labels from the log-probabilities of the tokens that spell one.

A chat server lists, at each place of its answer, the tokens it might have put there. Along the answer the labels part: at the
places where the tokens of the label stand, each listed token begins some of the labels that fit until then and rules the others
out. A label's weight is the sum over the listed ways to begin it of the product of their tokens' probabilities:

- the answer's own token carries on with the labels that it fits, at its own probability;
- another token ends there: its probability goes to the labels that it begins, in equal shares where there are several, since the
  server does not say how it would have gone on;
- the last label left gets what the answer's own tokens come to.

The weights are divided by their sum, so tokens that begin no label do not count. A label that no list reaches has probability 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def label_probabilities(
    logprobs: Any, text: str, span: tuple[int, int], label: str, labels: Sequence[str]
) -> tuple[float, ...]:
    """Return the probability of every label, in order; nothing where the lists do not tell.

    ``logprobs``: as in the first choice of a chat reply; ``text[span[0]:span[1]]``: the label as a JSON string, quotes included.
    They do not tell where they are missing or do not spell the text, or where the answer's own token is in none of its lists: a
    grammar put it there, from beyond the end of the list, and the other labels may lie beyond it too.
    """
    places = _places(logprobs)
    start, stop = (len(text[:edge].encode("utf-8", "surrogatepass")) for edge in span)
    content = text.encode("utf-8", "surrogatepass")
    at = -b"".join(token for token, _ in places).find(content)  # what is before the text was trimmed off it
    if not places or at > 0:
        return ()
    spelled = {
        each: content[:start] + json.dumps(each, ensure_ascii=False).encode("utf-8", "surrogatepass") for each in labels
    }
    spelled[label] = content[:stop]
    weights = dict.fromkeys(labels, 0.0)
    live, carried = list(labels), 1.0
    for token, listed in places:
        end = at + len(token)
        if len(live) == 1 or at >= stop:
            break
        if end > start:
            if token not in listed:
                return ()
            for other, probability in listed.items():
                fits = [each for each in live if _begins(spelled[each], at, other)]
                for each in fits if other != token else ():
                    weights[each] += carried * probability / len(fits)
            live = [each for each in live if _begins(spelled[each], at, token)]
            carried *= listed[token]
        at = end
    for each in live:
        weights[each] += carried / len(live)
    total = math.fsum(weights.values())
    return tuple(weights[each] / total for each in labels) if total > 0 else ()


def _begins(spelled: bytes, at: int, token: bytes) -> bool:
    """Return whether a token that stands at ``at`` goes on with a spelling: is in it, or reaches beyond its end."""
    if at < 0:
        return spelled.startswith(token[-at:]) or token[-at:].startswith(spelled)
    rest = spelled[at:]
    return rest.startswith(token) or (rest != b"" and token.startswith(rest))


def _places(logprobs: Any) -> list[tuple[bytes, dict[bytes, float]]]:
    """Return the answer's tokens and, of each, the listed ones with their probabilities; nothing where one cannot be read."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    places = []
    for place in content if isinstance(content, list) else ():
        token, listed = _token(place), place.get("top_logprobs") if isinstance(place, Mapping) else None
        if token is None or not isinstance(listed, list):
            return []
        found: dict[bytes, float] = {}
        for other in listed:
            name, value = _token(other), other.get("logprob") if isinstance(other, Mapping) else None
            if name and isinstance(value, int | float) and not isinstance(value, bool) and value <= 1e-3:
                found[name] = min(1.0, found.get(name, 0.0) + math.exp(max(-1e6, min(0.0, value))))
        places.append((token, found))
    return places


def _token(place: Any) -> bytes | None:
    """Return the bytes of a token, from its text where they are not given."""
    if not isinstance(place, Mapping):
        return None
    given, text = place.get("bytes"), place.get("token")
    if isinstance(given, list) and all(isinstance(b, int) and not isinstance(b, bool) and 0 <= b < 256 for b in given):
        return bytes(given)
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None
