"""A handed-over model on a hub: a server of this machine gets what `huggingface_hub` sends it, and gives it back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import outlay as package
from outlay.errors import HubError, UnknownModel, UsageError
from outlay.export.hub_files import paths_of_here
from outlay.export.loading_lines import hub_lines
from tests.hub_server import READ, WRITE, LocalHub, Repository, local_hub
from tests.runs import FamilyWorld
from tests.test_cli import Ran, outlay, refused
from tests.test_handover import handed
from tests.test_method_runs import families

__all__ = ["families"]

# What huggingface_hub itself does with the library beneath it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NOTES = ["heat the agar for 12 minutes", "cool the water", "shake the salt"]
ADAPTED = {"README.md", "outlay.json"}
"""Files that go to a hub with other bytes than those of the folder."""


@pytest.fixture(scope="module")
def made(families: FamilyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that handed over a classifier on vectors."""
    folder = tmp_path_factory.mktemp("run") / "out"
    handed(families, folder, "classes", None, "encoder", "probe")
    return folder


@pytest.fixture(scope="module")
def words(families: FamilyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that handed over a classifier of words."""
    folder = tmp_path_factory.mktemp("words") / "out"
    handed(families, folder, "classes", None, "encoder", "tfidf")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the results, to be changed."""
    shutil.copytree(made / "model", tmp_path / "out" / "model")
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token that may write, and the protocol of large files that the server speaks."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", WRITE)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


def push(hub: LocalHub, folder: Path, *more: object, repo: str = "me/notes") -> Ran:
    return outlay("model", "push", folder, repo, "--endpoint", hub.url, *more)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(repository: Repository, branch: str = "main") -> dict[str, bytes]:
    """Files of a branch but for that of the hub itself."""
    return {name: found for name, found in repository.branches[branch].items() if name != ".gitattributes"}


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_every_file_arrives_in_one_commit(hub: LocalHub, made: Path, families: FamilyWorld) -> None:
    ran = push(hub, made, "--message", "first try")
    assert ran.code == 0, ran.err
    assert f"{hub.url}/me/notes (private, commit " in ran.out
    assert "the card, README.md, holds the receipt with its prices" in ran.err
    repository, ours = hub.repositories["me/notes"], content(made / "model")
    arrived = sent(repository)
    assert arrived.keys() == ours.keys() > {"model.safetensors", "head.safetensors", "1_Pooling/config.json"}
    assert {n: f for n, f in arrived.items() if n not in ADAPTED} == {n: f for n, f in ours.items() if n not in ADAPTED}
    assert repository.private
    [commit] = repository.commits
    assert commit[0]["value"]["summary"] == "first try"
    large = {line["value"]["path"]: line["value"]["oid"] for line in commit if line["key"] == "lfsFile"}
    assert large == {n: hashlib.sha256(f).hexdigest() for n, f in ours.items() if n.endswith(".safetensors")}
    tokens = {token for _, path, token in hub.requests if not path.startswith("/large/")}
    assert tokens == {WRITE}
    # The address of storage is signed: it is none of the hub's, and gets no token.
    assert {token for _, path, token in hub.requests if path.startswith("/large/")} == {None}


def test_nothing_that_arrives_names_a_folder_of_this_machine(
    hub: LocalHub, made: Path, words: Path, families: FamilyWorld
) -> None:
    roots = {str(families.tasks["classes"].parent.parent), str(made.parent.parent)}
    assert str(families.tasks["classes"]) in (made / "model" / "outlay.json").read_text(), "what evaluate OUT reads"
    for i, folder in enumerate((made, words)):
        assert push(hub, folder, repo=f"me/{i}").code == 0
        arrived = sent(hub.repositories[f"me/{i}"])
        assert not [name for name, found in arrived.items() if any(root.encode() in found for root in roots)]
        was, now = (
            json.loads(text) for text in ((folder / "model" / "outlay.json").read_bytes(), arrived["outlay.json"])
        )
        del was["handed_over"]["task"]
        assert now == was
    assert "vocabulary.json holds the words" in push(hub, words, "--dry-run").err
    assert "| student | encoder |" in arrived["README.md"].decode()


def test_the_same_model_again_sends_nothing(hub: LocalHub, made: Path) -> None:
    first, n_before = push(hub, made, repo="notes"), len(hub.requests)
    assert first.code == 0
    again = push(hub, made, "--json", repo="notes").json
    assert again["pushed"] == {"commit": hub.repositories["me/notes"].sha("main"), "changed": False, "removed": []}
    assert again["url"] == f"{hub.url}/me/notes"
    assert not [path for method, path, _ in hub.requests[n_before:] if method == "PUT" or "/commit/" in path]
    assert len(hub.repositories["me/notes"].commits) == 1
    assert "nothing to push" in push(hub, made).out


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(hub: LocalHub, made: Path) -> None:
    planned = push(hub, made, "--dry-run", "--json").json
    assert hub.requests == []
    assert f"{planned['n_bytes']:,} bytes in {len(planned['files'])} files to {hub.url}/me/notes" in push(
        hub, made, "--dry-run"
    ).out.replace("  ", "")
    assert push(hub, made, "--json").json["files"] == planned["files"]
    arrived = sent(hub.repositories["me/notes"])
    assert {each["name"]: each["n_bytes"] for each in planned["files"]} == {n: len(f) for n, f in arrived.items()}


def test_rows_beside_the_model_stay_here(hub: LocalHub, out: Path) -> None:
    parts = set(content(out / "model"))
    more = (
        "evaluation/test/predictions.jsonl",
        "new.predictions.csv",
        "rows.txt",
        ".cache/rows.json",
        "more/rows.json",
    )
    for name in more:
        (out / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "model" / name).write_text("heat the agar")
    ran = push(hub, out)
    assert set(sent(hub.repositories["me/notes"])) == parts
    assert "not sent, since they are no part of the model: .cache/rows.json, evaluation/test" in ran.err
    assert "and 2 more" in ran.err


def test_a_card_with_words_of_ones_own_goes_as_it_is(hub: LocalHub, out: Path) -> None:
    card = out / "model" / "README.md"
    card.write_text(card.read_text().replace("With `outlay`:", "As I do it:"))
    assert "Use of README.md is not as `outlay` writes it" in push(hub, out).err
    assert sent(hub.repositories["me/notes"])["README.md"] == card.read_bytes()


def test_python_pushes_and_prints_nothing(hub: LocalHub, made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert package.push_model(made, "me/notes", endpoint=f"{hub.url}/") == f"{hub.url}/me/notes"
    assert "".join(capfd.readouterr()) == ""
    with pytest.raises(HubError, match="403"):
        package.push_model(made / "model", "you/notes", endpoint=hub.url)


# --- back from the hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for what is fetched from the server."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("branch", [(), ("--revision", "v2")], ids=["main", "v2"])
def test_what_was_pushed_answers_as_the_model_here(
    hub: LocalHub, made: Path, words: Path, tmp_path: Path, branch: tuple[str, ...]
) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    for folder, repo in ((made, "me/vectors"), (words, "me/words")):
        ran = push(hub, folder, *branch, repo=repo)
        known = package.load_model(folder).predict(NOTES, precision="fp32")
        fetched = snapshot_download(repo, revision=branch[-1] if branch else None, local_dir=tmp_path / repo)
        assert package.load_model(fetched).predict(NOTES, precision="fp32") == known
        # The lines that are printed are those of the card, and know where the model is.
        [lines] = re.findall(r"```python\n(.*?)```", (Path(fetched) / "README.md").read_text(encoding="utf-8"), re.S)
        assert ran.out.endswith(f"\n\n{lines}")
        there: dict[str, Any] = {}
        exec(lines, there)
        assert [there["answer"]({"note": note}) for note in NOTES] == known


def test_lines_that_a_name_is_enough_for() -> None:
    lines = 'from transformers import pipeline\n\ntag = pipeline("token-classification", model="MODEL")\n'
    assert hub_lines(lines, "me/x") == lines.replace("MODEL", "me/x")
    assert hub_lines(lines, "me/x", "v2") == (
        "from transformers import pipeline\nfrom huggingface_hub import snapshot_download\n\n"
        'folder = snapshot_download("me/x", revision="v2")\n\ntag = pipeline("token-classification", model=folder)\n'
    )


# --- what is there already -------------------------------------------------------------------------------------------


def test_another_model_takes_the_place_of_the_first(hub: LocalHub, made: Path, words: Path) -> None:
    assert push(hub, made).code == 0
    hub.repositories["me/notes"].branches["main"] |= {"LICENSE": b"mine", "figure.png": b"mine"}
    ran = push(hub, words)
    assert "removed, of the model before: 1_Pooling/config.json, config.json" in ran.out
    assert len(hub.repositories["me/notes"].commits) == 2
    assert set(sent(hub.repositories["me/notes"])) == {*content(words / "model"), "LICENSE", "figure.png"}


def test_a_model_of_another_program_is_not_replaced(hub: LocalHub, made: Path) -> None:
    hub.repositories["me/notes"] = Repository(True, {"main": {"README.md": b"mine", "config.json": b"{}"}})
    refused(push(hub, made, "--quiet"), "me/notes holds a model that `outlay` did not make", "another repository")
    hub.repositories["me/notes"] = Repository(True, {"main": {"README.md": b"mine", "LICENSE": b"mine"}})
    assert push(hub, made).code == 0


def test_a_public_repository_is_filled_only_where_that_is_said(hub: LocalHub, made: Path) -> None:
    hub.repositories["me/notes"] = Repository(False)
    refused(push(hub, made, "--quiet"), "me/notes is public", "prices", "--public")
    assert hub.repositories["me/notes"].commits == []
    assert "(public, " in push(hub, made, "--public").out
    assert "(public, " in push(hub, made, "--public", repo="me/new").out
    assert not hub.repositories["me/new"].private


def test_a_branch_of_its_own(hub: LocalHub, made: Path, words: Path) -> None:
    assert push(hub, made).code == 0
    before = sent(hub.repositories["me/notes"])
    for _ in range(2):
        ran = push(hub, words, "--revision", "v2")
        assert f"{hub.url}/me/notes/tree/v2" in ran.out
    assert "hf download me/notes --revision v2 --local-dir notes" in ran.out
    assert sent(hub.repositories["me/notes"]) == before
    assert set(sent(hub.repositories["me/notes"], "v2")) == set(content(words / "model"))


# --- refusals --------------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


REFUSALS: dict[str, tuple[dict[str, tuple[int, str]], str, tuple[str, ...]]] = {
    "a wrong token": ({}, "hf_other", ("401", "hf auth login", "HF_TOKEN")),
    "a token that may read": ({}, READ, ("may not write to me/notes", "403", "/settings/tokens")),
    "no right to commit": ({"/commit/": (403, "no")}, WRITE, ("may not write to me/notes", "403: no")),
    "a change at the same time": ({"/commit/": (409, "moved")}, WRITE, ("409: moved", "same command again")),
    "another parent": ({"/commit/": (412, "moved")}, WRITE, ("412: moved", "same command again")),
    "too many requests": ({"/api/models": (429, "slow")}, WRITE, ("does not serve this now", "429", "later")),
    "a broken hub": ({"/api/models": (503, "down")}, WRITE, ("does not serve this now", "503: down", "later")),
    "files it does not want": ({"/commit/": (400, "bad name")}, WRITE, ("refuses me/notes (400: bad name)",)),
    "a card it does not take": (
        {"validate-yaml": (400, "no licence")},
        WRITE,
        ("me/notes was not pushed", "README.md"),
    ),
}


@pytest.mark.parametrize(("refusals", "token", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_one_line(
    hub: LocalHub,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: dict[str, tuple[int, str]],
    token: str,
    says: tuple[str, ...],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.refusals = refusals
    refused(push(hub, made, "--quiet"), *says)
    assert all(not each.commits for each in hub.repositories.values())


def test_a_card_that_the_hub_does_not_take(hub: LocalHub, out: Path) -> None:
    (out / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    refused(push(hub, out, "--quiet"), "does not take the card", "pipeline_tag is missing", "mend README.md")
    assert hub.repositories["me/notes"].commits == []


def test_an_owner_that_is_somebody_else(hub: LocalHub, made: Path) -> None:
    refused(push(hub, made, "--quiet", repo="you/notes"), "may not write to you/notes", "of your own")


def test_without_a_token_nothing_is_asked(hub: LocalHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused(push(hub, made, "--quiet"), "no token", "hf auth login", "HF_TOKEN")
    assert hub.requests == []
    Path(constants.HF_TOKEN_PATH).write_text(WRITE)
    assert push(hub, made).code == 0, "as a login leaves it"


def test_offline_nothing_is_asked(hub: LocalHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(push(hub, made, "--quiet"), "HF_HUB_OFFLINE is set", "unset it")
    assert hub.requests == []
    assert push(hub, made, "--dry-run").code == 0


def test_a_hub_that_is_not_there_or_none(hub: LocalHub, made: Path) -> None:
    nobody = f"http://127.0.0.1:{_free_port()}"
    refused(outlay("model", "push", made, "me/x", "--endpoint", nobody, "--quiet"), nobody, "cannot be reached")
    refused(outlay("model", "push", made, "me/x", "--endpoint", "hub", "--quiet"), "'hub' is no URL", "https://")
    refused(push(hub, made, "--quiet", "--endpoint", f"{hub.url}/blog"), f"{hub.url}/blog has no me/notes", "404")
    hub.refusals = {"/api/": (200, "welcome")}
    refused(push(hub, made, "--quiet"), f"{hub.url} does not answer as a hub does", "HF_ENDPOINT")


def test_a_hub_without_xet_storage(hub: LocalHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet", reason="hf_xet is not installed: large files go another way")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    refused(push(hub, made, "--quiet"), "me/notes was not pushed", "set HF_HUB_DISABLE_XET=1")


@pytest.mark.parametrize("name", ["https://huggingface.co/me/x", "a b", "me/x.git", "me/-x", "a--b", "me/", ""])
def test_names_that_are_no_repository(made: Path, name: str) -> None:
    refused(outlay("model", "push", made, name, "--dry-run"), f"{name!r} is no name of a repository", "OWNER/NAME")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (shutil.rmtree, "outlay.json is missing"),
    "no weights": (
        lambda model: [path.unlink() for path in model.glob("*.safetensors")],
        "no model.safetensors",
    ),
    "no card": (lambda model: (model / "README.md").unlink(), "has no card"),
    "of a single step": (
        lambda model: (model / "outlay.json").write_text(json.dumps({"family": "encoder"})),
        "has no card",
    ),
}


@pytest.mark.parametrize(("change", "says"), FOLDERS.values(), ids=FOLDERS)
def test_folders_without_a_model_to_push(hub: LocalHub, out: Path, change: Callable[[Path], object], says: str) -> None:
    change(out / "model")
    with pytest.raises(UnknownModel, match=says):
        package.push_model(out, "me/notes", endpoint=hub.url)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "a b", '"', "-x", "../x"])
def test_names_that_are_no_branch(hub: LocalHub, made: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name of a branch"):
        package.push_model(made, "me/notes", revision=name, endpoint=hub.url)
    assert hub.requests == []


# --- paths -----------------------------------------------------------------------------------------------------------


def test_paths_of_this_machine_are_told_from_other_text(tmp_path: Path) -> None:
    here = tmp_path / "tasks" / "task.yaml"
    text = f"outlay run {here} --out '{tmp_path}/gone' 5 $/hour https://a.b/c/d ~/x/y micro/strict and/or /no-such-folder/x"
    assert paths_of_here(text) == [str(here), f"{tmp_path}/gone"]
