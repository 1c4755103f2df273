"""One line for each way in which a hub, or the way to it, fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from outlay.errors import HubError, OutlayError, first_line
from outlay.export.model_dir import CARD_FILE

_CONFLICTS = (409, 412)
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2")
"""Under huggingface_hub 1 and 2; names of their errors are the same."""


@contextmanager
def hub_errors(endpoint: str, repo: str) -> Iterator[None]:
    """Turn a failure of a hub or of the way to it into one line; a file of this machine that cannot be read stays as it is.

    Raises:
        HubError: the hub cannot be reached, refuses the token, the repository or the files, or is none.
    """
    try:
        yield
    except OutlayError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise HubError(_line(error, endpoint, repo)) from error


def _line(error: Exception, endpoint: str, repo: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(_chain(error))
    said = "; ".join(dict.fromkeys(_words(each) for each in (chain[0], chain[-1])))
    if isinstance(error, ValueError) and CARD_FILE in said:
        return f"{repo} was not pushed to {endpoint}, which does not take the card ({_words(error)}); mend {CARD_FILE}"
    for each in chain:
        if isinstance(each, HfHubHTTPError):
            return _refusal(each.response.status_code, each.server_message or first_line(each), endpoint, repo)
    if "xet" in said.lower():
        return (
            f"{repo} was not pushed to {endpoint} ({said}); where the hub has no Xet storage, set HF_HUB_DISABLE_XET=1"
        )
    for each in chain:
        if isinstance(each, ConnectionError) or type(each).__module__.split(".")[0] in _HTTP_LIBRARIES:
            return f"{endpoint} cannot be reached ({first_line(each)}); check the network, --endpoint and HF_ENDPOINT"
    if isinstance(error, ValueError | KeyError) and not isinstance(error, UnicodeError):
        return f"{endpoint} does not answer as a hub does ({said}); check --endpoint and HF_ENDPOINT"
    return f"{repo} was not pushed to {endpoint} ({said})"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refusal(status: int, message: str, endpoint: str, repo: str) -> str:
    """Return the line for an HTTP status of a hub; ``message``: what the hub says of it, of any number of lines."""
    said = f"{status}: {' '.join(message.split())}"
    if status == 401:
        return f"{endpoint} does not take the token that is here ({said}); log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return (
            f"the token that is here may not write to {repo} ({said}); take one with write access "
            f"({endpoint}/settings/tokens), or name a repository of your own"
        )
    if status == 404:
        return f"{endpoint} has no {repo} for the token that is here ({said}); check owner and name"
    if status in _CONFLICTS:
        return f"{repo} was changed by somebody else at the same time ({said}); run the same command again"
    if status == 429 or status >= 500:
        return f"{endpoint} does not serve this now ({said}); run the same command again later"
    return f"{endpoint} refuses {repo} ({said})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
