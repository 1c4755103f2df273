"""The cache of a model goes in and comes out by the name that its transformers has for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from outlay.models.decoder_cache import cache_in, parameters
from outlay.models.decoding import DecodingState, greedy


class Counter:
    """A cache that counts the tokens it was shown."""

    def __init__(self) -> None:
        self.n_read = 0

    def batch_select_indices(self, at: Tensor) -> None:
        assert at.dtype == torch.int64


class Output(SimpleNamespace):
    """What transformers returns: fields by name; since 5.24 it warns where it is asked for the old one."""

    @property
    def past_key_values(self) -> Any:
        assert "cache" not in vars(self), "`past_key_values` is deprecated. Use `cache` instead."
        return vars(self)["past"]


class Strict(nn.Module):
    """A causal model that says the number of tokens it has read, modulo 7; only through its cache can it know."""

    def _say(self, input_ids: Tensor, cache: Counter | None) -> tuple[Tensor, Counter]:
        cache = cache if cache is not None else Counter()
        at = cache.n_read + torch.arange(1, input_ids.shape[1] + 1)
        cache.n_read += input_ids.shape[1]
        return nn.functional.one_hot(at % 7, 7).float().expand(len(input_ids), -1, -1), cache


class Old(Strict):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Counter | None = None, use_cache: bool = False
    ) -> Output:
        assert use_cache
        logits, kept = self._say(input_ids, past_key_values)
        return Output(logits=logits, past=kept)


class New(Strict):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Counter | None = None, use_cache: bool = False
    ) -> Output:
        assert use_cache
        logits, kept = self._say(input_ids, cache)
        return Output(logits=logits, cache=kept)


class Adapted(nn.Module):
    """What peft puts around a model: any keyword is handed on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_base_model(self) -> nn.Module:
        return self.model

    def forward(self, *args: Any, **more: Any) -> Any:
        return self.model(*args, **more)


@pytest.mark.parametrize("model", [Old(), New(), Adapted(Old()), Adapted(New())])
def test_a_model_goes_on_from_its_cache_by_either_name(model: nn.Module) -> None:
    read = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    said = greedy(DecodingState(model, read, None), n_new=6, closing=-1, n_choices=7)
    assert [row.tolist() for row in said] == [[3, 4, 5, 6, 0, 1]] * 2


def test_the_cache_is_read_by_the_name_it_has() -> None:
    assert cache_in(Output(cache="new")) == "new"
    assert cache_in(Output(past="old")) == "old"
    assert cache_in(Output(cache=None)) is None
    assert cache_in(SimpleNamespace(logits=0)) is None
    assert "cache" in parameters(nn.DataParallel(Adapted(New())))
