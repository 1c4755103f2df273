"""The command line: each command parses, calls, prints."""

from __future__ import annotations

from outlay.cli.app import main

__all__ = ["main"]
