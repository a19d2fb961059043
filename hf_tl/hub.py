"""The Hub: files there in one commit, files here from one commit, one sentence for whatever is in the way.

A push is one commit. Whatever ends it half-way, a lost connection, a server that dies, a process that is killed, the
repository holds all of it or nothing of it: large files go to the store first, where nobody sees them, and the commit
that names them comes last. A repository that was made for a push that failed stays, empty; nothing on the Hub is ever
deleted. The same push again finishes the work, and makes no second commit of the same files.

A token is never printed or written: it is taken from `token=`, HF_TOKEN or `hf auth login`, and handed to
huggingface_hub alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.errors import InputError, in_one_line


if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

CARD = "README.md"
_TOKEN = re.compile(r"[!-~]+")  # what a header can carry; anything else would be quoted in an error of the client


@dataclass(frozen=True)
class PushResult:
    """What a push did or, as a rehearsal, would do.

    Attributes:
        repo_id: "user/name".
        url: the address of the commit; empty for a rehearsal.
        commit: its hash; empty for a rehearsal.
        sizes: file -> bytes.
        card: the model card.
    """

    repo_id: str
    url: str
    commit: str
    sizes: Mapping[str, int]
    card: str = field(repr=False)


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    card: Callable[[str | None], str],
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Files and a model card to a model repository, which is made where there is none, in one commit.

    Args:
        files: name in the repository -> file.
        repo_id: "user/name".
        card: the text of README.md that is there (None where there is none) -> the text to write.
        message: of the commit.
        private: of a repository that is made; None for the default of its owner.
        revision: the branch, which is made where there is none; None for main.
        token: None for HF_TOKEN or what `hf auth login` stored.
        dry_run: whether nothing is sent and nothing asked.

    Raises:
        InputError: a malformed name, no token, no permission, no connection, a repository that is public where
            `private` was asked for.
    """
    check_repo_id(repo_id)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if dry_run:
        text = card(None)
        return PushResult(repo_id, "", "", {**sizes, CARD: len(text.encode())}, text)
    from huggingface_hub import CommitOperationAdd, HfApi

    token, doing = find_token(token), f"push to {repo_id!r}"
    with explained(doing, repo_id, token=token, revision=revision):
        api = HfApi(token=token)
        there = _card_at(api, repo_id, _prepare(api, repo_id, private=private, revision=revision))
    text = card(there)
    parts = [CommitOperationAdd(name, path) for name, path in files.items()]
    with explained(doing, repo_id, token=token, revision=revision):
        parts.append(CommitOperationAdd(CARD, text.encode()))
        # not upload_folder: that one may split its files over several commits
        made = api.create_commit(repo_id, parts, commit_message=message, revision=revision)
    return PushResult(repo_id, made.commit_url, made.oid, {**sizes, CARD: len(text.encode())}, text)


def pull_files(repo_id: str, names: Sequence[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder in the local cache that holds these files of one commit, downloaded where they are not there yet.

    Args:
        repo_id: "user/name".
        names: files; those that the repository does not have are left out.
        revision: branch, tag or commit; None for main.
        token: None for HF_TOKEN or what `hf auth login` stored; public repositories need none.

    Raises:
        InputError: no such repository or revision, no permission, no connection and nothing in the cache.
    """
    from huggingface_hub import get_token, snapshot_download

    check_repo_id(repo_id)
    with explained(
        f"pull {repo_id!r}, which is no folder here", repo_id, token=token or get_token(), revision=revision
    ):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(names), token=token))


def is_hub_id(name: object) -> bool:
    """Whether a name could be a repository's, "user/name", and is nothing on this disk."""
    return isinstance(name, str) and name.count("/") == 1 and is_hub_name(name)


def is_hub_name(name: object) -> bool:
    """The same for the few old repositories without an owner, too: "gpt2"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def check_repo_id(repo_id: str) -> None:
    """Raises InputError unless it has the form "user/name"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        problem = "" if repo_id.count("/") == 1 else "the name of its owner is missing"
    except HFValidationError as error:
        problem = str(error).split(":")[0].split(". ")[0].lower()
    if problem:
        raise InputError(f"a repository is called 'user/name', got {repo_id!r}: {problem}")


def find_token(token: str | None) -> str:
    """The token of a push.

    Raises:
        InputError: none anywhere, or one that cannot be sent; it is not quoted.
    """
    from huggingface_hub import get_token

    found = token or get_token()
    if not found:
        raise InputError(
            "a push needs a token that may write: log in with `hf auth login`, or set HF_TOKEN, "
            "to one from https://huggingface.co/settings/tokens"
        )
    if not _TOKEN.fullmatch(found):
        raise InputError("the token holds blanks or other characters that no token has; copy it once more")
    return found


@contextmanager
def explained(doing: str, repo_id: str, *, token: str | None, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub and its client say into one sentence, an InputError that never quotes the token.

    Args:
        doing: what failed, "push to 'user/name'".
        repo_id: the repository.
        token: what must not be quoted.
        revision: what was asked for.
    """
    from huggingface_hub.constants import ENDPOINT, is_offline_mode
    from huggingface_hub.errors import HTTPError

    if is_offline_mode() and doing.startswith("push"):
        raise InputError(f"cannot {doing}: the Hub is switched off by HF_HUB_OFFLINE=1; unset it")
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, HTTPError) as error:
        said = f"cannot {doing}: {_reason(error, repo_id, revision, ENDPOINT)}"
        if doing.startswith("push"):
            said += "; a push is one commit, so that all of it is there or nothing: push again"
        quotes = token is not None and any(token in str(link) for link in _chain(error))
        said = said.replace(token, "***") if token is not None else said
        raise InputError(said) from (None if quotes else error)


def _prepare(api: HfApi, repo_id: str, *, private: bool | None, revision: str | None) -> str | None:
    """Makes the repository and the branch where they are missing; returns the commit that is there."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        info = None
    if info is None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return None
    if private and not info.private:
        raise InputError(
            f"{repo_id!r} is public, and private was asked for; make it private on its settings page, "
            f"or push to another name"
        )
    if revision in (None, "main"):
        return info.sha
    try:
        return api.model_info(repo_id, revision=revision).sha
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return info.sha


def _card_at(api: HfApi, repo_id: str, head: str | None) -> str | None:
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if head is None:
        return None
    try:
        return Path(api.hf_hub_download(repo_id, CARD, revision=head)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:  # says that the file is not in the cache, and not why
        raise error.__cause__ or error from None


def _reason(error: BaseException, repo_id: str, revision: str | None, endpoint: str) -> str:
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    causes = list(_chain(error, handled=False))
    for link in causes:
        if isinstance(link, RevisionNotFoundError):
            return f"{repo_id!r} has no revision {revision!r}"
        if isinstance(link, HfHubHTTPError):
            return _answer(link, repo_id)
    if isinstance(error, LocalEntryNotFoundError) and is_offline_mode():
        return "it is not in the local cache, and the Hub is switched off by HF_HUB_OFFLINE=1"
    if isinstance(error, ValueError | KeyError) and not isinstance(error, OSError):
        return in_one_line(error)
    return f"the Hub at {endpoint} cannot be reached, or went silent ({in_one_line(causes[-1])})"


def _answer(error: HfHubHTTPError, repo_id: str) -> str:
    """What an HTTP status means here."""
    status, owner = error.response.status_code, repo_id.partition("/")[0]
    told = f" ({error.server_message.splitlines()[0]})" if error.server_message else ""
    if status == 401 and error.response.headers.get("X-Error-Code") != "RepoNotFound":
        return "the Hub does not accept the token; make a new one, and `hf auth login` or HF_TOKEN to it"
    if status == 403:
        return f"the token may not write there; use one with the role 'write' of {owner!r} or of a member{told}"
    if status in (401, 404):
        return f"there is no repository {repo_id!r} that you may see; check its name, and HF_TOKEN if it is private"
    return f"the Hub answered {status}{told}"


def _chain(error: BaseException | None, *, handled: bool = True) -> Iterator[BaseException]:
    """The error and what caused it; with `handled`, what was being handled when it came, too."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (error.__context__ if handled else None)
