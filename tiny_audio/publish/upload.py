"""To the hub in one commit, by its own client; every failure is one line that says what to do."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from tiny_audio.errors import UserError

T = TypeVar("T")

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
ATTEMPTS = 3
WAIT_SECONDS = 2.0  # before the second attempt, twice that before the third
PRECONDITION_FAILED = 412
PASSING_STATUS = {429, 500, 502, 503, 504, PRECONDITION_FAILED}
WRITE_TOKEN = "use one with the right to write there, from https://huggingface.co/settings/tokens"
NO_TOKEN = f"The hub wants to know who you are: set HF_TOKEN, or log in with `hf auth login`; {WRITE_TOKEN}"


def check_repo_id(repo_id: str) -> None:
    """Raises UserError for what the hub would not take as USER/NAME."""
    if (
        not REPO_ID.fullmatch(repo_id)
        or ".." in repo_id
        or "--" in repo_id
        or repo_id.endswith((".git", ".", "-"))
    ):
        raise UserError(
            f'"{repo_id}" is not a repository: write USER/NAME (or ORGANISATION/NAME), of letters, digits, ., - and _'
        )


def connect() -> tuple[Any, str]:
    """The hub's client and the name of who is logged in. Raises UserError when nobody is, or may only read."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    user = ask("asking the hub who you are", api.whoami)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"Your token may only read: {WRITE_TOKEN}")
    return api, str(user["name"])


def check_token() -> None:
    """Raises UserError where the hub refuses the token. Where it cannot be asked from here, nothing is known."""
    try:
        connect()
    except UserError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if error.__cause__ is None or status in (401, 403):
            raise


def create(api: Any, repo_id: str, private: bool, repo_type: str = "model") -> bool:
    """Make the repository, of a model or a Gradio "space", where there is none. Returns whether it is private.

    Raises UserError where it would have to be private and is not, or there is no right to make or change it.
    """
    options = {"repo_type": repo_type, "space_sdk": "gradio" if repo_type == "space" else None}
    ask(
        f"making {repo_id}",
        lambda: api.create_repo(repo_id, private=private or None, exist_ok=True, **options),
    )
    is_private = bool(ask(f"reading {repo_id}", lambda: api.repo_info(repo_id, repo_type=repo_type)).private)
    if private and not is_private:
        raise UserError(
            f"{repo_id} exists and is public: make it private in its settings first, or choose another name"
        )
    return is_private


def commit_folder(
    api: Any, repo_id: str, folder: Path, patterns: tuple[str, ...], message: str, repo_type: str = "model"
) -> str:
    """Publish files in one commit, and take out what an earlier version had; returns the commit.

    Args:
        patterns: names of files that are ours: files of the folder are published if they match, and files of the
            repository that match and are not in the folder are deleted. Nothing else there is touched.

    An attempt whose connection is cut is repeated. It cannot be published twice: each attempt builds on the newest
    commit, and files that are there already are left out.

    Raises:
        UserError: the hub refuses, or cannot be reached; the repository is then as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def is_ours(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    files = [file for file in sorted(folder.iterdir()) if file.is_file() and is_ours(file.name)]

    def attempt() -> str:
        head = api.repo_info(repo_id, repo_type=repo_type)
        there = {sibling.rfilename for sibling in head.siblings or []}
        gone = sorted(
            name for name in there - {file.name for file in files} if "/" not in name and is_ours(name)
        )
        operations: list[Any] = [CommitOperationDelete(name) for name in gone]
        operations += [CommitOperationAdd(file.name, str(file)) for file in files]
        return api.create_commit(
            repo_id, operations, commit_message=message, parent_commit=head.sha, repo_type=repo_type
        ).oid

    return ask(f"publishing to {repo_id}", lambda: repeat(attempt))


def fetch(api: Any, repo_id: str, folder: Path) -> str:
    """All files of a published model, into a folder; returns their commit."""
    from huggingface_hub import snapshot_download

    def download() -> str:
        commit = api.repo_info(repo_id).sha
        snapshot_download(repo_id, revision=commit, local_dir=folder)
        return commit

    return ask(f"reading {repo_id}", download)


def repeat(attempt: Callable[[], T]) -> T:
    """What `attempt` returns, after more attempts where the connection was cut or the hub was busy."""
    for number in range(1, ATTEMPTS):
        try:
            return attempt()
        except Exception as error:
            if not is_passing(error):
                raise
            wait = WAIT_SECONDS * number
            print(f"{_reason(error)}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
    return attempt()


def ask(doing: str, call: Callable[[], T]) -> T:
    """What a call of the hub's client returns. Raises UserError for whatever goes wrong between here and the hub."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        return call()
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError(NO_TOKEN) from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            "HF_HUB_OFFLINE is set, which forbids to reach the hub: unset it to publish"
        ) from error
    except Exception as error:
        answer = next((each for each in _chain(error) if isinstance(each, HfHubHTTPError)), None)
        if answer is not None:
            raise UserError(describe_refusal(doing, answer)) from error
        if is_passing(error):
            raise UserError(
                f"{doing}: the connection to the hub failed ({_reason(error)}). Nothing is half-published; run the"
                " same command again"
            ) from error
        if isinstance(
            error, (ValueError, OSError)
        ):  # what the client itself refuses, such as a card's metadata
            raise UserError(f"{doing}: {_reason(error)}") from error
        raise


REFUSALS = {
    400: "the hub refused what it was sent ({message})",
    401: "the hub does not know your token: it is wrong, or has expired. Set HF_TOKEN to a new one from"
    " https://huggingface.co/settings/tokens, or log in again with `hf auth login`",
    402: "the hub asks for payment ({message})",
    403: f"your token may not do that ({{message}}): {WRITE_TOKEN}",
    404: "there is no such repository, or your token may not see it",
    409: "another change is going on there; try again",
    412: "somebody else publishes there at the same moment; try again",
    429: "the hub asks for a pause ({message}); try again later",
}


def describe_refusal(doing: str, error: Any) -> str:
    """An answer of the hub other than success, and what to do about it."""
    response = error.response
    status = 0 if response is None else response.status_code
    message = _one_line(error.server_message or str(error))
    if status == 401 and response.headers.get("X-Error-Code") == "RepoNotFound":
        status = 404
    reason = REFUSALS.get(status, "the hub answered {status} ({message})")
    return f"{doing}: {reason.format(message=message, status=status)}"


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: a cut connection, a busy hub, a race with another commit."""
    for each in _chain(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status is not None:
            return status in PASSING_STATUS
        # The client has changed from one HTTP library to another between its versions; both have this base class.
        names = {kind.__name__ for kind in type(each).__mro__}
        if names & {"TransportError", "ConnectionError", "TimeoutError"} or type(each).__module__.startswith(
            "hf_xet"
        ):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """The innermost reason as one line."""
    innermost = list(_chain(error))
    return next((_one_line(str(each)) for each in innermost if str(each).strip()), type(error).__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
