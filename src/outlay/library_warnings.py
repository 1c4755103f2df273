"""Hide deprecation warnings of libraries from users; the tests raise them as errors."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TextIO

ABOUT_THE_FUTURE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def hide_deprecations() -> None:
    """Show no deprecation warning in this process from now on, unless Python was asked to (``-W``, ``PYTHONWARNINGS``).

    Warnings that are turned into errors stay errors. Libraries put filters of their own before everybody's, and a warning often
    names the caller: so it is dropped where it would be shown, not by a filter or by the module that it names.
    """
    # transformers logs such warnings as well; a process that this one starts inherits the variable.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if sys.warnoptions or getattr(warnings.showwarning, "hides_deprecations", False):
        return
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, ABOUT_THE_FUTURE):
            shown(message, category, filename, lineno, file, line)

    show.hides_deprecations = True  # type: ignore[attr-defined]
    warnings.showwarning = show
