"""Exported models on the Hugging Face hub, or on the server that HF_ENDPOINT names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from pitlm import __version__
from pitlm.core.errors import InputError


def open_repository(name: str, *, private: bool) -> str:
    """Make the repository of a model, unless it exists.

    Returns:
        The whole name of the repository, with its owner.

    Raises:
        InputError: not online, no token, an impossible name, a refusal, or a public repository where a
            private one is wanted.
    """
    if is_offline_mode():
        raise InputError("--push-to-hub: found HF_HUB_OFFLINE set, expected to be online; unset it")
    if get_token() is None:
        raise InputError("--push-to-hub: found no token; run `hf auth login`, or set HF_TOKEN")
    with _explained(name):
        made = HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id
        if private and not HfApi().model_info(made).private:
            raise InputError(f"--push-to-hub {name}: found a public repository, expected a private one (--private)")
    return str(made)


def upload(folder: Path, name: str) -> str:
    """Upload a folder as one commit; files that the repository has already are not sent.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses, or the connection was lost; the same command goes on.
    """
    with _explained(name):
        commit = HfApi().upload_folder(folder_path=folder, repo_id=name, commit_message=f"pit export ({__version__})")
    return str(commit.commit_url)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of the hub's client into one message."""
    try:
        yield
    except InputError:
        raise
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or str(error)
        hint = "; is the token one that may write there?" if status in (401, 403) else ""
        raise InputError(f"--push-to-hub {name}: refused ({status}): {_line(said)}{hint}") from error
    except HTTPError as error:
        raise InputError(f"--push-to-hub {name}: cannot reach {constants.ENDPOINT}: {_line(str(error))}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a bad name; a file's transfer, whose own client is in Rust
        raise InputError(f"--push-to-hub {name}: {_line(str(error))}") from error


def _line(text: str) -> str:
    return " ".join(text.split())
