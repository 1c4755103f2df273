"""The group of processes that train together: one, several with a copy of the model each, or shards (FSDP).

One code path for all: with one process every function here is the identity. Processes are started by `torchrun` or
`accelerate launch`; `accelerate` reads their environment and opens the process group.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from outlay.errors import UsageError, first_line

if TYPE_CHECKING:
    from accelerate.state import PartialState

T = TypeVar("T")

FSDP_SWITCH = "ACCELERATE_USE_FSDP"

_BUCKET_BYTES = 64 * 2**20
"""Bytes of gradients in one message: large enough that latency does not count, small beside the model."""

_PATIENCE = timedelta(hours=1)
"""Timeout of a collective operation: the main process may score a dev set or write a large model meanwhile."""


class ProcessGroup:
    """The process group, seen from one of its ``n_processes`` on its ``device``; ``fsdp``: the weights are sharded among them."""

    def __init__(self, state: PartialState, *, fsdp: bool = False) -> None:
        self.device: torch.device = state.device
        self.rank: int = state.process_index
        self.n_processes: int = state.num_processes
        self.fsdp = fsdp and self.n_processes > 1

    @property
    def is_main(self) -> bool:
        """Return whether this process writes, reports and decides for all."""
        return self.rank == 0

    # Communication.

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.n_processes > 1:
            dist.barrier()

    def broadcast(self, number: int) -> int:
        """Return the main process's number, on every process."""
        if self.n_processes == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def gather(self, local: list[T]) -> list[T]:
        """Return the lists of all processes one after another in rank order, on every process."""
        if self.n_processes == 1:
            return local
        every: list[list[T]] = [[] for _ in range(self.n_processes)]
        dist.all_gather_object(every, local)
        return [each for part in every for each in part]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` ``[n]`` over all processes, float64 on this process's device."""
        summed = values.detach().to(self.device, torch.float64)
        if self.n_processes > 1:
            dist.all_reduce(summed)
        return summed

    # Models.

    def prepare(self, model: nn.Module) -> None:
        """Move the model to this process's device, equal to the main process's copy or sharded (FSDP2).

        With ``fsdp`` every block that the model names as not to be split (``_no_split_modules``) is gathered for its own forward
        and backward pass only; the parameters become `DTensor`, so make the optimiser after this.
        """
        if self.fsdp:
            _shard(model, self.n_processes, self.device)
            return
        model.to(self.device)
        if self.n_processes > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def add_gradients(self, parameters: Iterable[nn.Parameter], factor: float = 1.0) -> None:
        """Replace each gradient by its sum over all processes, times ``factor``.

        Every process must hold gradients for the same parameters. Shards have been averaged by the backward pass already.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.fsdp:
            factor *= self.n_processes
        elif self.n_processes > 1:
            for bucket in _buckets(gradients):
                _add_up(bucket)
        if factor != 1.0:
            for gradient in gradients:
                gradient.mul_(factor)

    def full_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole, contiguous copies on the CPU of the main process; every process must call, others get nothing."""
        whole: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.is_main:
                whole[name] = gathered.detach().cpu().clone().contiguous()
        return whole


@cache
def current_process() -> ProcessGroup:
    """Return the process group that the environment describes; the same object at every call.

    The weights are sharded where `FSDP_SWITCH` is ``true`` in the environment, as `accelerate launch --use_fsdp` sets it.

    Raises:
        UsageError: processes that cannot be joined.
    """
    return ProcessGroup(_process_state(), fsdp=os.environ.get(FSDP_SWITCH, "false").lower() == "true")


def shard_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return ``whole`` sharded as ``tensor`` is; each process takes its part of its own copy."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    return whole


def _process_state() -> PartialState:
    """Return Accelerate's state of this process, with the process group open; the number of threads stays as it was."""
    from accelerate.state import PartialState

    n_threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            timeout = {"timeout": _PATIENCE} if "LOCAL_RANK" in os.environ else {}
            state = PartialState(cpu=not torch.cuda.is_available(), **timeout)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"the processes of this training cannot be joined ({first_line(error)}); start them with "
            "`python -m torch.distributed.run` or `accelerate launch`"
        ) from error
    torch.set_num_threads(n_threads)
    if state.num_processes > 1:
        atexit.register(_leave)
    return state


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _shard(model: nn.Module, n_processes: int, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (n_processes,))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "generate"):
        # `generate` calls parts of the model directly; without this the root's own weights would still be sharded.
        register_fsdp_forward_method(model, "generate")


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    """Yield runs of gradients of one dtype, of about `_BUCKET_BYTES` each."""
    bucket: list[Tensor] = []
    n_bytes = 0
    for gradient in gradients:
        if bucket and (n_bytes >= _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, n_bytes = [], 0
        bucket.append(gradient)
        n_bytes += gradient.nbytes
    if bucket:
        yield bucket


def _add_up(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()
