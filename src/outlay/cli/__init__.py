"""The command line: each command parses, calls, prints."""

import gc

# Imports make no garbage, and collecting takes a tenth of the start.
gc.disable()
from outlay.cli.app import main  # noqa: E402

gc.enable()

__all__ = ["main"]
