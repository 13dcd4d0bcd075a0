"""Fishers on the Hugging Face Hub: a repository with a card that says how each was made."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from fisherscope.errors import ParameterError, StoreError
from fisherscope.integrations.card import card
from fisherscope.structures import Fisher, load
from fisherscope.structures.io import FORMAT, FORMAT_VERSION, MANIFEST, MIGRATIONS
from fisherscope.structures.manifest import read_signed

CARD = "README.md"
# The error of the HTTP library underneath, which is another one from version to version.
_TRANSPORT: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__  # type: ignore[assignment]
# What a repository that was just made may hold.
_BARE = {CARD, ".gitattributes"}
# Nothing else is downloaded, whatever else a repository holds.
_READ = ["*.json", "*.safetensors"]
# Files of the Fisher that was there before: another number of shards, halves that are no more.
_OLD = ["fisher.json", "ledger*", "sums*", "half-?/*"]


def push_to_hub(
    fisher: Fisher,
    repo_id: str,
    *,
    model: str | None = None,
    data: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Fisher",
    dtype: torch.dtype | None = None,
) -> str:
    """Publish a Fisher as a repository of the Hugging Face Hub, in one commit.

    The repository holds what :meth:`Fisher.save` writes and a card (``README.md``) with the
    identity, the counts, the rules and how to load it. The ids of the examples are in it, their
    content is not. A Fisher that is there already, and its card, are replaced; the repository's
    history keeps them.

    Args:
        fisher: The Fisher.
        repo_id: ``"user/name"`` or ``"organisation/name"``; made if it doesn't exist.
        model: What the card says about the model, for instance its name on the Hub; the
            fingerprint of its weights stands there anyway. Default: ``None``, nothing.
        data: The same about the data. Default: ``None``, nothing.
        private: Whether a repository that is made is private. Default: ``None``, what the
            account or organisation has set.
        token: Default: ``None``, that of ``hf auth login``.
        message: Of the commit. Default: ``"Fisher"``.
        dtype: As in :meth:`Fisher.save`. Default: ``None``, the sums' own.

    Returns:
        The address of the repository.

    Raises:
        ParameterError: If ``fisher`` is none, or ``repo_id`` is no name.
        StoreError: If nobody is logged in, the repository may not be written, holds other things,
            or the Hub can't be reached.
    """
    if not isinstance(fisher, Fisher):
        raise ParameterError(f"push_to_hub takes a Fisher, not {type(fisher).__name__}")
    _check_name(repo_id)
    with tempfile.TemporaryDirectory() as folder, _explained(f"push to {repo_id!r}", repo_id):
        place = Path(folder) / "fisher"
        fisher.save(place, dtype=dtype)
        (place / CARD).write_text(card(fisher, repo_id, model, data), encoding="utf-8")
        hub = HfApi(token=token)
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        there = set(hub.list_repo_files(repo_id))
        if MANIFEST not in there and there - _BARE:
            raise StoreError(
                f"{repo_id!r} holds other things ({min(there - _BARE)!r}) and is not overwritten; "
                "choose another repository"
            )
        hub.upload_folder(
            repo_id=repo_id, folder_path=place, commit_message=message, delete_patterns=_OLD
        )
    return str(address)


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Fisher:
    """Read a Fisher from the Hugging Face Hub.

    Its manifest is fetched first, then JSON and safetensors of the same commit, nothing else; all
    of it is checked like a folder by :func:`fisherscope.load`. What was fetched before is taken
    from the cache.

    Args:
        repo_id: ``"user/name"``; anything else raises :class:`ParameterError`.
        revision: Branch, tag or commit; a commit can't change. Default: ``None``, the main branch.
        token: Default: ``None``, that of ``hf auth login``; public ones need none.
        cache_dir: Where files are kept. Default: ``None``, the cache of the Hub.

    Returns:
        The Fisher.

    Raises:
        StoreError: If there is no such repository or revision, it holds no Fisher, one of another
            format version or a damaged one, or the Hub can't be reached.
    """
    _check_name(repo_id)
    options = {"token": token, "cache_dir": cache_dir}
    with _explained(f"read {repo_id!r}", repo_id, revision):
        first = snapshot_download(repo_id, revision=revision, allow_patterns=[MANIFEST], **options)
        manifest = Path(first) / MANIFEST
        if not manifest.is_file():
            raise StoreError(
                f"{repo_id!r} has no {MANIFEST}, so it holds no Fisher; check the name and the "
                "revision, or publish one with push_to_hub"
            )
        read_signed(manifest, kind=FORMAT, version=FORMAT_VERSION, migrations=MIGRATIONS)
        # The folder of a snapshot has the name of its commit: a branch may have moved on since.
        commit = Path(first).name
        return load(snapshot_download(repo_id, revision=commit, allow_patterns=_READ, **options))


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ParameterError(
            f"repo_id={repo_id!r} is no name of a repository ({error}); use 'user/name'"
        ) from error


@contextmanager
def _explained(doing: str, repo_id: str, revision: str | None = None) -> Generator[None]:
    """Say what to do about whatever goes wrong between here and the Hub."""
    login = "run `hf auth login` or pass token="
    try:
        yield
        return
    except StoreError:
        raise
    except LocalTokenNotFoundError as error:
        cause, fix = error, f"you are not logged in; {login}"
    except RevisionNotFoundError as error:
        cause, fix = error, f"it has no revision {revision!r}; give a branch, a tag or a commit"
    except RepositoryNotFoundError as error:
        cause = error
        fix = f"there is no repository {repo_id!r} that you may see; check the name, or {login}"
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        denied = f"the Hub refuses (HTTP {code}); {login} that has the right to do so"
        cause, fix = error, denied if code in {401, 403} else f"the Hub says: {_line(error)}"
    except (OSError, EntryNotFoundError, *_TRANSPORT) as error:
        cause, fix = error, f"{_line(error)}; check the connection, and try again"
    raise StoreError(f"can't {doing}: {fix}") from cause


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
