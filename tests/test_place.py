"""One process's place, and what is said when several cannot be joined; several are in `tests.test_processes`."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from torch import nn

from outlay.train.distributed import current_process


def test_one_process_is_the_main_one_and_says_everything_to_itself() -> None:
    place = current_process()
    assert place is current_process()
    assert (place.rank, place.n_processes, place.is_main, place.fsdp) == (0, 1, True, False)
    assert place.gather([3, 1]) == [3, 1]
    assert [place.broadcast(7), place.broadcast(0)] == [7, 0]
    assert place.all_reduce(torch.tensor([1.5, 2.5])).tolist() == [1.5, 2.5]
    place.barrier()


def test_a_place_takes_threads_as_they_are_set() -> None:
    """A process that looks where it is computes with as many threads as before: sums depend on them."""
    code = (
        "import torch; torch.set_num_threads(3); import outlay.train.distributed as p; p.current_process(); "
        "print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["3"]


def test_a_full_state_is_a_copy_and_owns_tied_weights_twice() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    whole = current_process().full_state(model.state_dict())
    assert torch.equal(whole["0.weight"], model[0].weight)
    assert whole["0.weight"].data_ptr() != whole["1.weight"].data_ptr()
    with torch.no_grad():
        model[0].weight.zero_()
    assert whole["0.weight"].abs().sum() > 0


def test_gradients_of_one_process_are_scaled_and_absent_ones_stay_absent() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    model[0](torch.ones(1, 3)).sum().backward()
    current_process().add_gradients(model.parameters(), 0.25)
    assert model[0].weight.grad is not None
    assert torch.equal(model[0].weight.grad, torch.full((2, 3), 0.25))
    assert model[1].weight.grad is None


def test_processes_without_an_address_are_refused_in_one_line() -> None:
    code = "import outlay.train.distributed as p\ntry: p.current_process()\nexcept p.UsageError as error: print(error)"
    lonely = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    environment = {**lonely, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("the processes of this training cannot be joined")
    assert "python -m torch.distributed.run" in line
