"""A training's checkpoints: written whole or not at all, read back bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outlay.errors import TrainingError
from outlay.models.peft import load_trained_state, trained_state
from outlay.storage.checkpoint_files import checkpoint_state, newest_checkpoint
from outlay.storage.files import sync_folder, writing
from outlay.train.distributed import ProcessGroup, shard_like
from outlay.train.progress import TrainProgress, WorkMeter


@dataclass(slots=True)
class TrainState:
    """The changing state of a training, all of it kept in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    meter: WorkMeter
    progress: TrainProgress
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation."""


class Checkpoints:
    """A training's checkpoints in a folder: weights and optimiser moments as safetensors, the rest as JSON.

    A new one is written beside the old one and renamed, so that a kill at any moment leaves one whole checkpoint. Several
    processes write one, as a single process would; all of them read it, so the folder must be on a disk they share.
    """

    def __init__(self, folder: Path, every_seconds: float = 20.0, every_steps: int | None = None) -> None:
        self._folder = folder
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._last = time.monotonic()

    def wanted_at(self, step: int) -> bool:
        """Return whether one is asked for at optimiser step ``step``, whatever the time."""
        return self._every_steps is not None and step % self._every_steps == 0

    def maybe_save(self, training: TrainState, group: ProcessGroup) -> None:
        """Save when the last checkpoint is older than ``every_seconds``, and at every ``every_steps``-th optimiser step.

        Raises:
            DiskFull: no room left.
        """
        due = self.wanted_at(training.progress.step) or time.monotonic() - self._last >= self._every_seconds
        if group.broadcast(int(due)):
            self._save(training, group)
            self._last = time.monotonic()

    def load(self, training: TrainState, group: ProcessGroup) -> None:
        """Go on from the newest whole checkpoint; without one nothing changes.

        Raises:
            TrainingError: processes that see different checkpoints.
        """
        newest = newest_checkpoint(self._folder)
        seen = group.gather(["none" if newest is None else newest.name])
        if len(set(seen)) > 1:
            raise TrainingError(
                f"the processes see different checkpoints ({', '.join(seen)}) below {self._folder}; put it on a disk they share"
            )
        if newest is None:
            return
        now = trained_state(training.model)
        load_trained_state(training.model, _sharded(load_file(newest / "model.safetensors"), now))
        best = newest / "best.safetensors"
        training.best = _sharded(load_file(best), now) if best.exists() else None
        state = checkpoint_state(newest)
        _load_optimizer(training.optimizer, load_file(newest / "optimizer.safetensors"), state["optimizer"])
        training.meter.restore(state["gauge"])
        training.progress = TrainProgress(**state["progress"])

    def _save(self, training: TrainState, group: ProcessGroup) -> None:
        tensors, numbers = _optimizer_state(training.optimizer)
        parts = {"model": group.full_state(trained_state(training.model)), "optimizer": group.full_state(tensors)}
        if training.best is not None:
            parts["best"] = group.full_state(training.best)
        if group.is_main:
            state = {"progress": asdict(training.progress), "gauge": training.meter.state(), "optimizer": numbers}
            self._write(f"step-{training.progress.step}", parts, state)
        group.barrier()

    def _write(self, name: str, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        new = self._folder / f"{name}.tmp"
        shutil.rmtree(new, ignore_errors=True)
        with writing(new):
            new.mkdir(parents=True)
        for part, tensors in parts.items():
            with writing(path := new / f"{part}.safetensors"):
                save_file(tensors, path)
        with writing(path := new / "state.json"):
            path.write_text(json.dumps(state), encoding="utf-8")
        for path in new.iterdir():
            with writing(path):
                _fsync(path)
        with writing(self._folder / name):
            sync_folder(new)
            new.rename(self._folder / name)
            # Before the last one goes: a loss of power must not take both.
            sync_folder(self._folder)
        for old in self._folder.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)


def _sharded(whole: dict[str, Tensor], now: dict[str, Any]) -> dict[str, Tensor]:
    """Return whole tensors, sharded as those of the same name are now."""
    return {name: shard_like(tensor, now[name]) for name, tensor in whole.items()}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and numbers by ``parameter index.name``."""
    flat = {
        f"{index}.{name}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Load optimiser state; a parameter's elementwise state is sharded as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        whole = isinstance(value, Tensor) and value.shape == parameter.shape
        state.setdefault(int(index), {})[name] = shard_like(value, parameter) if whole else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
