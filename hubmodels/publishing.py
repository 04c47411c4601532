"""Publishing to the Hub: one commit, complete or absent.

`publish` makes a self-contained repository folder (`prepare_repository`) and uploads it in a single commit. Large files
are uploaded before the commit, where nobody sees them; the commit makes everything visible at once. When it fails,
a repository or branch that was created for it is deleted again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from .repository import CONFIG_NAME, prepare_repository

logger = logging.getLogger(__name__)

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second attempt, the third ...
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
# The client's base class of everything that goes wrong in a request (httpx, or httpx2 in newer releases).
RequestFailure = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# Weights and code of an earlier version: left in place, they would be loaded instead of, or next to, the new ones.
REPLACED_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")

Result = TypeVar("Result")


class PublishError(RuntimeError):
    """Publishing failed; the message says why and what state the Hub is in. It never contains the token."""


def publish(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    update: bool = False,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Publish a saved model, its code, processor and card to the Hub in one commit.

    Answers that promise better luck next time (5xx, 429) and cut connections are retried a few times with growing
    waits. If it still fails, nothing of the attempt stays visible.

    Args:
        folder: Folder written by `save_pretrained` of model and processor; see `prepare_repository`.
        repo_id: `OWNER/NAME`, or `NAME` for the owner of the token.
        private: Create the repository private.
        update: Allow a commit to a repository that exists already. Files of its earlier weights and code are replaced,
            its other files and its history stay.
        token: Access token with the right to write; by default that of `HF_TOKEN` or `hf auth login`.
        revision: Branch to commit to, created if it does not exist; `main` by default.

    Returns:
        URL of the commit.

    Raises:
        PublishError: If the repository exists and `update` is not set, the token is missing or refused, or the Hub
            cannot be reached or keeps failing.
        FileNotFoundError, ValueError: If `folder` cannot be published, as in `prepare_repository`.

    Example:

    ```python
    >>> from hubmodels.publishing import publish

    >>> publish("run/", "me/my-mae", private=True)  # doctest: +SKIP
    'https://huggingface.co/me/my-mae/commit/3f1c...'
    ```
    """
    validate_repo_id(repo_id)
    secret = token or get_token()
    if secret is None:
        raise PublishError("no token for the Hub: set HF_TOKEN, run `hf auth login` or pass token=...")
    api = HfApi(token=secret)
    origin = _token_origin(token)
    if "/" not in repo_id:
        with _explained(api, repo_id, origin):
            repo_id = f"{_retrying(api.whoami)['name']}/{repo_id}"
    with tempfile.TemporaryDirectory(prefix="hubmodels-publish-") as scratch:
        prepared = prepare_repository(folder, Path(scratch) / "repository", name=repo_id)
        with _explained(api, repo_id, origin):
            return _Publication(api, repo_id, revision or "main").run(prepared, private, update)


class _Publication:
    """One publication: what existed before, what was created for it, and how to take that back.

    Args:
        api: Client that carries the token.
        repo_id: `OWNER/NAME`.
        branch: Branch to commit to.
    """

    def __init__(self, api: HfApi, repo_id: str, branch: str):
        self.api, self.repo_id, self.branch = api, repo_id, branch
        self.created_repository = False  # it exists, or may exist, through us
        self.created_branch = False  # the same
        self.head: str | None = None  # newest commit of the branch before

    def run(self, prepared: Path, private: bool, update: bool) -> str:
        """Create what is missing, commit, and clean up after a failure."""
        try:
            self._open_repository(private, update)
            self._open_branch()
            return _retrying(lambda: self._commit(prepared))
        except PublishError:
            raise
        except BaseException as error:
            error.add_note(self._undo())
            raise

    def _open_repository(self, private: bool, update: bool) -> None:
        if _retrying(lambda: self.api.repo_exists(self.repo_id)):
            self._check_may_update(private, update)
        else:
            _retrying(lambda: self._create_repository(private))

    def _check_may_update(self, private: bool, update: bool) -> None:
        if not update:
            raise PublishError(
                f"repo_id: {self.repo_id} exists already at {self.api.endpoint}/{self.repo_id}; nothing was changed. "
                f"Set update=True (--update) to add a commit to it, or choose another name"
            )
        if private and not _retrying(lambda: self.api.model_info(self.repo_id)).private:
            raise PublishError(f"private: {self.repo_id} exists already and is public; nothing was changed")

    def _create_repository(self, private: bool) -> None:
        try:
            # After an attempt whose answer was lost it may exist already, and it is ours.
            self.api.create_repo(self.repo_id, private=private or None, exist_ok=self.created_repository)
        except Exception as error:
            self.created_repository |= _is_transient(error)
            raise
        self.created_repository = True

    def _open_branch(self) -> None:
        try:
            self.head = _retrying(lambda: self.api.model_info(self.repo_id, revision=self.branch)).sha
        except RevisionNotFoundError:
            self.created_branch = True
            _retrying(lambda: self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True))

    def _commit(self, prepared: Path) -> str:
        """Upload and commit; repeated after a lost answer, it finds its own commit and makes no second one."""
        info = self.api.model_info(self.repo_id, revision=self.branch)
        files = {path.relative_to(prepared).as_posix(): path for path in prepared.rglob("*") if path.is_file()}
        model_type = json.loads((prepared / CONFIG_NAME).read_text(encoding="utf-8"))["model_type"]
        replaced = (*REPLACED_FILES, f"*_{model_type}.py")
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in sorted(files.items())
        ]
        operations += [
            CommitOperationDelete(path_in_repo=sibling.rfilename)
            for sibling in info.siblings or ()
            if sibling.rfilename not in files and any(fnmatchcase(sibling.rfilename, name) for name in replaced)
        ]
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message="Publish with hubmodels",
            revision=self.branch,
            parent_commit=info.sha,
        )
        return commit.commit_url

    def _undo(self) -> str:
        """Delete what was created for this publication; say what state the Hub is in."""
        try:
            if self.created_repository:
                _retrying(lambda: self.api.delete_repo(self.repo_id, missing_ok=True))
                return f"Nothing was published: {self.repo_id}, created for this upload, was deleted again."
            if self.created_branch:
                _retrying(lambda: self.api.delete_branch(self.repo_id, branch=self.branch))
                return f"Nothing was published: the new branch {self.branch!r} was deleted again."
            if self.head is None:
                return "Nothing was published."
            head = _retrying(lambda: self.api.model_info(self.repo_id, revision=self.branch)).sha
        except Exception as error:
            leftover = f"branch {self.branch!r} of " if self.created_branch else ""
            created = self.created_repository or self.created_branch
            state = "was created empty for this upload and could not be deleted" if created else "could not be checked"
            return f"Afterwards {leftover}{self.repo_id} {state} ({type(error).__name__})."
        if head == self.head:
            return f"{self.repo_id} is unchanged."
        return (
            f"{self.repo_id} has moved from commit {self.head} to {head} meanwhile: check whether that is this upload."
        )


def _retrying(action: Callable[[], Result]) -> Result:
    """Call `action` until it succeeds, fails for good, or the attempts are used up."""
    for wait in RETRY_WAITS:
        try:
            return action()
        except Exception as error:
            if not _is_transient(error):
                raise
            logger.warning("the Hub failed (%s); trying again in %.0f s", _summary(error), wait)
            time.sleep(wait)
    return action()


def _is_transient(error: BaseException) -> bool:
    """Whether repeating may help: the server's own errors, answers that are no JSON, and cut connections."""
    cause = _request_failure(error)
    status = _status(cause)
    if status is not None:
        return status in RETRIED_STATUS
    return isinstance(cause, (RequestFailure, json.JSONDecodeError))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _request_failure(error: BaseException) -> BaseException:
    """The failed request behind an exception of the client, or the exception itself."""
    kinds = (RequestFailure, json.JSONDecodeError)
    return next((cause for cause in _chain(error) if isinstance(cause, kinds)), error)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _summary(error: BaseException) -> str:
    cause = _request_failure(error)
    text = " ".join(re.sub(r"For more information check: \S+", "", str(cause)).split()) or "no answer"
    return f"{type(cause).__name__}: {text}"


@contextmanager
def _explained(api: HfApi, repo_id: str, token_origin: str) -> Iterator[None]:
    """Turn what the client raises into a `PublishError`: what failed, what to do, what state the Hub is in."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        message = f"publishing {repo_id} to {api.endpoint} failed: {_summary(error)}"
        if _status(_request_failure(error)) in (401, 403):
            message += f" The token {token_origin} was refused: it must be valid and allowed to write to {repo_id}."
        message = " ".join([message, *getattr(error, "__notes__", ())])
        raise PublishError(message.replace(str(api.token), "***")) from error


def _token_origin(token: str | None) -> str:
    if token is not None:
        return "given as argument token"
    in_environment = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return "of the environment variable HF_TOKEN" if in_environment else "stored by `hf auth login`"


__all__ = ["PublishError", "prepare_repository", "publish"]
