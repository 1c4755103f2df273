"""File format of a block of targets: safetensors bytes, read where they lie.

Counts of rows and positions are stored and summed on reading; nothing else is read before it is used. The metadata hold one text
(safetensors orders several of them at random), and numbers take the narrowest type that holds a block's, so that equal targets
have equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlay.errors import ArtifactDamaged
from outlay.train.targets.sparse_logits import Array, SparseLogits, SparsityRule, narrowest

FORMAT = 3

_DTYPES = {
    **{"F32": np.float32, "F16": np.float16, "I32": np.int32},
    **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
}


@dataclass(frozen=True, slots=True, eq=False)
class TargetsBlock:
    """Targets of consecutive rows: their answers and their positions, laid end to end.

    ``n_positions``, ``n_real``, ``n_entries``: ``[rows]``, positions of each row, real ones among them, logits they keep in all.
    """

    rule: SparsityRule
    positions: SparseLogits
    n_positions: Array
    n_real: Array
    n_entries: Array
    answers: tuple[str, ...]


def to_bytes(block: TargetsBlock) -> bytes:
    """Write a block as safetensors bytes, equal for equal blocks."""
    from safetensors.numpy import save

    about = {"format": FORMAT, **asdict(block.rule)}
    positions = block.positions.narrowed(block.rule)
    arrays = {name: getattr(positions, name) for name in ("units", "logsumexp", "indices", "n_kept", "logits")}
    arrays |= {name: narrowest(getattr(block, name)) for name in ("n_positions", "n_real", "n_entries")}
    arrays["answers"] = np.frombuffer(json.dumps(block.answers).encode("ascii"), dtype=np.uint8)
    present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    return save(present, metadata={"targets": json.dumps(about)})


def open_file(path: Path) -> TargetsBlock:
    """Return a block whose arrays are views of the file, mapped into memory: what is not looked at is not read.

    The file is not kept open, so there may be any number of them; it must not be written to meanwhile.

    Raises:
        ArtifactDamaged: another format, or bytes that are no targets; names the file.
        OSError: no such file.
    """
    import torch

    n_bytes = path.stat().st_size
    if n_bytes == 0:
        raise ArtifactDamaged(f"{path} is empty; teach again")
    whole: NDArray[np.uint8] = torch.from_file(str(path), shared=False, size=n_bytes, dtype=torch.uint8).numpy()
    whole.flags.writeable = False
    try:
        size = int(whole[:8].view("<u8")[0])
        header: dict[str, Any] = json.loads(whole[8 : 8 + size].tobytes())
        about = json.loads(header.pop("__metadata__").get("targets", "{}"))
        if (found := about.get("format")) != FORMAT:
            named = "an earlier format" if found is None else f"format {found}"
            raise ArtifactDamaged(f"{path} has {named}, this version of outlay reads {FORMAT}; teach again")
        arrays = {name: _view(whole[8 + size :], entry) for name, entry in header.items()}
        return _block(about, arrays)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{path} cannot be read ({type(error).__name__}); teach again") from error


def _view(data: Array, entry: dict[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data):
        raise ValueError(f"a tensor lies at {start} to {stop} of {len(data)} bytes")
    return data[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _block(about: dict[str, Any], arrays: dict[str, Array]) -> TargetsBlock:
    kind, vocab_size, max_logits, tail_mass, temperatures = (about[each.name] for each in fields(SparsityRule))
    rule = SparsityRule(kind, vocab_size, max_logits, tail_mass, tuple(temperatures))
    units, logsumexp, indices, logits = (arrays[name] for name in ("units", "logsumexp", "indices", "logits"))
    positions = SparseLogits(units, logsumexp, indices, arrays.get("n_kept"), logits)
    rows = (arrays["n_positions"], arrays["n_real"], arrays["n_entries"])
    return TargetsBlock(rule, positions, *rows, tuple(json.loads(arrays["answers"].tobytes())))
