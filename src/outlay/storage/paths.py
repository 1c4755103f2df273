"""Paths as people write them: ``~`` expanded on the way in, quoted in commands on the way out."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

from outlay.errors import UsageError

NO_HOME = "OUTLAY_NO_HOME"
"""Set where ``HOME`` is a stand-in that libraries were given, and no folder of the user's."""


def expand(text: str) -> str:
    """Replace a leading ``~`` or ``~user`` by that home folder; any other text (URLs, ``package:`` references) stays as it is.

    Raises:
        UsageError: there is no such user, or no home folder is known.
    """
    if not text.startswith("~"):
        return text
    user, slash, rest = text[1:].partition("/")
    folder = _home_of(user, text) if user else home()
    if folder is None:
        raise UsageError(f"{text!r} names your home folder, and neither HOME nor the system says where it is; set HOME")
    return str(folder) + slash + rest


def expand_path(path: str | Path) -> Path:
    """Expand a leading ``~`` of a path, as `expand` does."""
    return Path(expand(str(path)))


def home() -> Path | None:
    """Return the user's home folder: ``HOME``, else what the system's list of users says; ``None`` where neither does."""
    named = os.environ.get("HOME")
    if NO_HOME in os.environ:
        return None
    if named:
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def as_word(path: str | Path) -> str:
    """Return a path as a word that no command takes for an option or a home folder."""
    text = str(path)
    if text.startswith("-"):
        return f"./{text}"
    return str(Path(text).absolute()) if text.startswith("~") else text


def command_line(*words: object) -> str:
    """Return a command to be pasted into a shell; every `Path` among the words stays a path there."""
    return shlex.join(as_word(word) if isinstance(word, Path) else str(word) for word in words)


def _home_of(user: str, text: str) -> Path:
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        raise UsageError(
            f"{text!r} names the home folder of {user!r}, and there is no such user; "
            "if it is a name of its own, give its whole path"
        ) from None
