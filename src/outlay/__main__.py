"""`python -m outlay`: how every process of a launch starts."""

from __future__ import annotations

from outlay.cli import main

main()
