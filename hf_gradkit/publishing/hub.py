"""The upload, through huggingface_hub, and what is said when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .. import __version__

MAIN = "main"
HTTP_ERROR = HfHubHTTPError.__bases__[0]  # the error of whichever HTTP library huggingface_hub uses


class PushError(OSError):
    """A push that the Hub, or the way to it, did not let through."""


def hub_api(token: str | None = None) -> HfApi:
    """Return huggingface_hub's client, which says to the Hub who calls."""
    return HfApi(token=token, library_name="hf_gradkit", library_version=__version__)


def upload(
    folder: Path,
    repo: str,
    repo_type: str,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    again: str = "run it again",
) -> str:
    """Create a repository if it is missing, upload a folder in one commit, and return the address of its page.

    Args:
        folder: all of it is uploaded.
        repo: `owner/name`, or `name` in the account of the token.
        repo_type: "model" or "dataset".
        private: whether a new repository is private; None leaves it to the account's settings.
        revision: a branch, made if it is missing.
        message: of the commit.
        again: what to do after an error, for its message.

    Raises:
        PushError: with what went wrong and what to do.
        ValueError: if the name of the repository cannot be one.
    """
    api = hub_api()
    with explained(repo, again):
        url = api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        if revision not in (None, MAIN) and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            repo_type=repo_type,
            revision=revision,
            commit_message=message or "Upload with hf_gradkit",
        )
    return str(url)


def check_repo(repo: str) -> None:
    """Raise `ValueError` for what cannot be the name of a repository; the Hub is not asked."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be the name of a repository: {error} Write owner/name.") from error


@contextmanager
def explained(repo: str, again: str) -> Iterator[None]:
    """Raise `PushError` with what to do for whatever goes wrong on the way to the Hub.

    Args:
        repo: where the push goes.
        again: how to try again.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be the name of a repository: {error} Write owner/name.") from error
    except Exception as error:
        words = _explain(error, repo)
        if words is None:
            raise
        raise PushError(f"{words} Nothing on this machine was changed or lost: {again}.") from error


def _explain(error: BaseException, repo: str) -> str | None:
    """Return what went wrong and its remedy; None for a fault that is not the Hub's or the network's."""
    log_in = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo!r} was not pushed: there is no token for the Hub. {log_in}."
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo!r} was not pushed: HF_HUB_OFFLINE is set. Unset it, or write the page with --dry_run FOLDER."
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, repo, log_in)
    if isinstance(error, HTTP_ERROR):
        return f"{repo!r} was not pushed: the connection to the Hub broke ({type(error).__name__}: {error})."
    if error.__cause__ is not None:  # huggingface_hub says which file it was, and has the reason as the cause
        return _explain(error.__cause__, repo)
    return None


def _explain_status(error: HfHubHTTPError, repo: str, log_in: str) -> str:
    status = error.response.status_code
    said = f"{repo!r} was not pushed: the Hub answered {status}"
    detail = f" ({error.server_message})" if error.server_message else ""
    if status == 401:
        return f"{said}{detail}: no token, or one that it does not know. {log_in}."
    if status == 403:
        return (
            f"{said}{detail}: the token may not write there. Make one with the right to write to {repo!r}, and log in "
            "with it: `hf auth login`."
        )
    if status == 404:
        return f"{said}{detail}: the repository or branch is not there, or the token may not see it. {log_in}."
    if status == 429:
        return f"{said}{detail}: too many requests. Wait a few minutes."
    if status >= 500:
        return f"{said}{detail}: it has a fault of its own. See its status page, and wait."
    return f"{said}: {error}"


def license_of(base: str | None) -> dict[str, Any]:
    """Return the license of a model of the Hub, by its page; empty where there is none or the Hub cannot be asked."""
    if base is None:
        return {}
    try:
        data = ModelCard.load(base).data
    except (OSError, ValueError, HTTP_ERROR, yaml.YAMLError):
        return {}  # offline, gated, gone, unreadable: the page then says that the license is not known
    return {key: data.get(key) for key in ("license", "license_name", "license_link") if data.get(key)}
