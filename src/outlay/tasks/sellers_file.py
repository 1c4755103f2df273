"""A file of sellers, which has the block `sellers` of a task file."""

from __future__ import annotations

from pathlib import Path

from outlay.errors import TaskFileError
from outlay.tasks.seller_blocks import SellerBlock
from outlay.tasks.task import RESERVED_SELLERS
from outlay.tasks.yaml_file import Name, YamlBlock, read_yaml


class SellersFile(YamlBlock):
    """Sellers of labels, in place of those of a task file that have the same names."""

    sellers: dict[Name, SellerBlock]
    """Sellers by name, as in a task file."""


def read_sellers(path: Path) -> dict[str, SellerBlock]:
    """Read a file of sellers.

    Raises:
        TaskFileError: it does not exist, is no YAML, or does not fit; one line.
    """
    if not path.is_file():
        raise TaskFileError(
            f"no file of sellers {path}; give a YAML file with the key `sellers`, as a task file has it"
        )
    found = read_yaml(path, SellersFile, TaskFileError, "the file of sellers", "docs/labels.md").sellers
    for name in found:
        if instead := RESERVED_SELLERS.get(name):
            raise TaskFileError(f"{path}: `sellers` names {name!r}, {instead}")
    return found
