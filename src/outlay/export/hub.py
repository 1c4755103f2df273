"""Push a handed-over model to a Hugging Face hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import outlay
from outlay.errors import UsageError
from outlay.export.hub_errors import hub_errors
from outlay.export.hub_files import HubFiles, hub_files, is_model_file
from outlay.export.model_dir import CARD_FILE
from outlay.models.reference import HEAD_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_ENDPOINT = re.compile(r"https?://[^/\s]+(/\S*)?")
_BRANCH = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*", re.ASCII)
_MAIN = "main"


@dataclass(frozen=True, slots=True)
class PushRequest:
    """A model to push and where to.

    ``folder``: of the model, or of the results that handed it over; ``repo``: OWNER/NAME, or NAME for the account of the token;
    ``private``: a new repository is, and one that is public already is refused; ``revision``: a branch, made where it is not
    there; ``message``: of the commit; ``endpoint``: URL of the hub, ``None`` = ``HF_ENDPOINT`` or huggingface.co.
    """

    folder: Path
    repo: str
    private: bool = True
    revision: str | None = None
    message: str | None = None
    endpoint: str | None = None

    def files(self) -> HubFiles:
        """Return the files that are sent to ``repo``; nothing leaves this machine.

        Raises:
            UsageError: the name of the repository or the URL of the hub is none.
            UnknownModel: there is no model with a card.
        """
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        if _ENDPOINT.fullmatch(self.hub) is None:
            raise UsageError(f"the hub {self.hub!r} is no URL; write it as https://huggingface.co")
        if self.revision is not None and _BRANCH.fullmatch(self.revision) is None:
            raise UsageError(f"{self.revision!r} is no name of a branch; write letters, digits and . _ - /, such as v2")
        try:
            validate_repo_id(self.repo)
        except HFValidationError:
            raise UsageError(
                f"{self.repo!r} is no name of a repository; write NAME or OWNER/NAME, of at most 96 letters and digits with "
                "single - _ . between them"
            ) from None
        return hub_files(self.folder, self.repo, self.branch)

    @property
    def hub(self) -> str:
        """URL of the hub."""
        from huggingface_hub import constants

        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    @property
    def place(self) -> str:
        """URL of the repository; of a bare name the account is not known before the hub is asked."""
        return f"{self.hub}/{self.repo}" if "/" in self.repo else f"{self.hub}/(account of the token)/{self.repo}"

    @property
    def branch(self) -> str | None:
        """The branch, ``None`` for the main one."""
        return None if self.revision == _MAIN else self.revision


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model on a hub.

    ``url``: page of the repository; ``commit``: the last one of the branch; ``is_changed``: False where the same files were there
    before, and nothing was sent; ``removed``: files of the model that was there before and that this one does not have.
    """

    url: str
    commit: str
    is_private: bool
    is_changed: bool
    files: HubFiles
    removed: tuple[str, ...]


def push(asked: PushRequest, *, bars: bool = False) -> Pushed:
    """Send a model to a hub in one commit; ``bars``: draw those of `huggingface_hub` on standard error.

    Raises:
        UsageError: as `PushRequest.files`; offline; no token; a repository that is public, or holds another model.
        UnknownModel: as `PushRequest.files`.
        HubError: the hub cannot be reached, or refuses.
    """
    asked.files()
    with hub_errors(asked.hub, asked.repo), _speech(bars):
        api = _connect(asked.hub)
        main = _repository(api, asked)
        _check_readers(asked, main)
        there = _revision(api, main, asked.branch)
        removed = _replaced(there)
        files = hub_files(asked.folder, main.id, asked.branch)
        return _commit(api, asked, there, files, sorted(removed - set(files.files)))


def _connect(endpoint: str) -> HfApi:
    """Return the interface of the hub with the token that `huggingface_hub` finds.

    Raises:
        UsageError: offline, or no token.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise UsageError("HF_HUB_OFFLINE is set, and a push needs the network; unset it")
    token = get_token()
    if token is None:
        raise UsageError(f"no token for {endpoint} is here; log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(endpoint=endpoint, token=token, library_name="outlay", library_version=outlay.__version__)


def _repository(api: HfApi, asked: PushRequest) -> ModelInfo:
    """Return the repository, made where it is not there: a token that may make none suffices for one that is."""
    from huggingface_hub.errors import HfHubHTTPError

    if "/" in asked.repo:
        try:
            return _info(api, asked.repo)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
    # Of a bare name the hub says whose it is.
    return _info(api, api.create_repo(asked.repo, private=asked.private, exist_ok=True).repo_id)


def _check_readers(asked: PushRequest, there: ModelInfo) -> None:
    if asked.private and not there.private:
        raise UsageError(
            f"{there.id} is public, and the card holds the receipt with its prices; let it be read by all (--public), or name "
            "another repository"
        )


def _revision(api: HfApi, main: ModelInfo, branch: str | None) -> ModelInfo:
    """Return the repository as its branch has it; the branch is made where it is not there."""
    from huggingface_hub.errors import RevisionNotFoundError

    if branch is None:
        return main
    try:
        return _info(api, main.id, branch)
    except RevisionNotFoundError:
        api.create_branch(main.id, branch=branch, exist_ok=True)
        return _info(api, main.id, branch)


def _replaced(there: ModelInfo) -> set[str]:
    """Return the files of the model that is there.

    Raises:
        UsageError: another program's model is there.
    """
    found = {name for name in _names(there) if is_model_file(name)}
    if found - {CARD_FILE} and HEAD_FILE not in found:
        raise UsageError(
            f"{there.id} holds a model that `outlay` did not make ({HEAD_FILE} is missing); name another repository"
        )
    return found


def _info(api: HfApi, repo: str, branch: str | None = None) -> ModelInfo:
    found: ModelInfo = api.model_info(repo, revision=branch)
    return found


def _names(there: ModelInfo) -> list[str]:
    return [each.rfilename for each in there.siblings or ()]


def _commit(api: HfApi, asked: PushRequest, there: ModelInfo, files: HubFiles, removed: list[str]) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    sent = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.files.items()
    ]
    done = api.create_commit(
        there.id,
        [*sent, *(CommitOperationDelete(name, is_folder=False) for name in removed)],
        commit_message=asked.message or f"outlay: {files.why}",
        revision=asked.branch,
    )
    return Pushed(
        url=f"{asked.hub}/{there.id}" + ("" if asked.branch is None else f"/tree/{asked.branch}"),
        commit=done.oid,
        is_private=bool(there.private),
        is_changed=done.oid != there.sha,
        files=files,
        removed=tuple(removed),
    )


@contextmanager
def _speech(bars: bool) -> Iterator[None]:
    """Let `huggingface_hub` draw its bars or not, and say nothing of files that were there already."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    # Its own variable, where that is set, has the last word.
    hides = not bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if hides:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hides:
            enable_progress_bars()
