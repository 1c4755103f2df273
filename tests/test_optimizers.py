"""Optimisers by name: Adafactor against that of `transformers`, what is decayed, what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.optimization import Adafactor as ReferenceAdafactor

from outlay.errors import UsageError
from outlay.settings import TrainSettings
from outlay.train.optimizers import make_optimizer

SETTINGS = TrainSettings(epochs=1, batch_size=4, learning_rate=0.01, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Linear(7, 5)
        self.cube = nn.Parameter(torch.randn(2, 3, 5))
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(5, 5), requires_grad=False)


def run(net: Net, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        hidden = torch.tanh(net.matrix(torch.randn(11, 7, generator=generator)))
        target = torch.randn(2, 11, 3, generator=generator)
        F.mse_loss(torch.einsum("bi,kji->kbj", hidden, net.cube), target).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adafactor_is_that_of_transformers_at_a_given_rate() -> None:
    ours, theirs = Net(), Net()
    run(ours, make_optimizer(ours, SETTINGS.changed({"optimizer": "adafactor"})), 23)
    wanted = [p for p in theirs.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = ReferenceAdafactor(groups, lr=0.01, scale_parameter=False, relative_step=False)
    run(theirs, reference, 23)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6), name
    assert not torch.allclose(ours.matrix.weight, Net().matrix.weight, atol=1e-2)


def test_adafactor_keeps_rows_and_columns_of_matrices_only() -> None:
    net = Net()
    optimizer = make_optimizer(net, SETTINGS.changed({"optimizer": "adafactor"}))
    run(net, optimizer, 1)
    assert {name: tuple(value.shape) for name, value in optimizer.state[net.cube].items()} == {
        "step": (),
        "rows": (2, 3),
        "columns": (2, 5),
    }
    assert tuple(optimizer.state[net.matrix.bias]["squares"].shape) == (5,)
    assert net.unused.weight not in optimizer.state


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_matrices_decay_vectors_do_not_and_frozen_ones_are_left_out(name: str) -> None:
    net = Net()
    optimizer = make_optimizer(net, SETTINGS.changed({"optimizer": name}))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in net.parameters() if p.requires_grad}


def test_8_bit_adamw_without_its_package_or_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.changed({"optimizer": "adamw_8bit"})
    for found, reason in ((None, "pip install bitsandbytes"), (object(), "needs a GPU")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UsageError, match=reason) as error:
            make_optimizer(Net(), settings)
        assert "\n" not in str(error.value)
