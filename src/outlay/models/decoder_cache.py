"""The key-value cache of a model, by whichever name its transformers version gives it.

transformers 5.24 renamed ``past_key_values`` to ``cache``, in the parameters of ``forward`` and in its result: the old name warns
from then on and goes in 5.40. Models of both kinds are told apart by the parameters of ``forward``, not by a version.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

_NEW, _OLD = "cache", "past_key_values"


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside of a wrapper such as torch's for data parallelism."""
    return getattr(model, "module", model)


def parameters(model: nn.Module) -> frozenset[str]:
    """Return the parameters of the model's ``forward``; adapters around a model pass on those they do not know."""
    inner = unwrapped(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return frozenset(inspect.signature(inner.forward).parameters)


def with_cache(takes: frozenset[str], cache: Any) -> dict[str, Any]:
    """Return the arguments that have a ``forward`` of the parameters ``takes`` go on from ``cache``; ``None``: begin one."""
    return {_NEW if _NEW in takes else _OLD: cache, "use_cache": True}


def cache_in(out: Any) -> Any:
    """Return the cache in what a ``forward`` returned; ``None`` where there is none."""
    # The old name answers for the new one where there is one, but not without a warning.
    return out.cache if hasattr(out, _NEW) else getattr(out, _OLD, None)
