"""Runs on the Hugging Face Hub: ``hf-hub:ORG/NAME[@REVISION]`` is fetched, a folder of files is pushed.

Nothing is done to a file here but carrying it: what a repository of ours holds is laid down in `write_config`, its page
in ``analysis.show.card``. What is fetched lies in the Hub's own cache, as one commit of the repository; weights that
are not those its ``config.json`` names are thrown away. A push is one commit: a repository has all of it or nothing.

No message holds a token, see `scrubbed`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.data.fingerprint import checksums
from whitebox.engine.header import WEIGHTS, weights_file
from whitebox.errors import CheckpointError, ConfigError, OutputError
from whitebox.files import write_text
from whitebox.foreign import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf-hub:"
CONFIG = "config.json"
LIBRARY = "whitebox"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
log = logging.getLogger("whitebox")


@dataclass(frozen=True)
class Reference:
    """A run on the Hub.

    Attributes:
        repository: ``ORG/NAME``.
        revision: a branch, tag or commit; None: the newest commit of the main branch.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Reference | None:
        """What ``hf-hub:ORG/NAME[@REVISION]`` names; None: it is a path.

        Raises:
            ConfigError: it is written like one, and is none.
        """
        text = os.fspath(path)
        if not text.startswith(PREFIX):
            return None
        repository, at, revision = text.removeprefix(PREFIX).partition("@")
        require_repository(repository, text)
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise ConfigError(f"{text} names no revision behind the @: give a branch, a tag or a commit.")
        return cls(repository, revision or None)

    @property
    def name(self) -> str:
        """As figures and tables show it."""
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def folder(self) -> str:
        """A name for the folder of what is measured of it."""
        return self.name.replace("/", "--")

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}"


def require_repository(repository: str, given: str | None = None) -> None:
    """Raise a ``ConfigError`` unless it is ``ORG/NAME``; ``given`` is what it was part of."""
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ConfigError(
            f"{given or repository} names no repository of the Hub: it is ORG/NAME, of letters, digits, - _ ."
        )


def weights_of(path: str | os.PathLike[str]) -> Path:
    """The file that holds the weights of a run here (see `weights_file`), or on the Hub, from where it is fetched.

    Raises:
        CheckpointError: there is none, or it cannot be had.
        ConfigError: see `Reference.of`.
    """
    reference = Reference.of(path)
    return weights_file(Path(path)) if reference is None else fetch(reference)


def fetch(reference: Reference) -> Path:
    """The weights of a run on the Hub, as a file of the Hub's cache.

    A commit that is in the cache is taken without a word to the Hub; where the Hub does not answer within seconds, so
    is what the cache has of a branch, which is said.

    Raises:
        CheckpointError: they cannot be had, are no run's, or arrived damaged.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from whitebox.models.hub import offline, require_answer

    repository, revision = reference.repository, reference.revision
    held = isinstance(try_to_load_from_cache(repository, WEIGHTS, revision=revision), str)
    settled = held and revision is not None and _COMMIT.fullmatch(revision) is not None

    def download(file: str, commit: str | None) -> Path:
        return Path(hf_hub_download(repository, file, revision=commit))

    with _explained(reference):
        if not settled:
            try:
                require_answer()
            except Exception as error:
                if not held:
                    raise
                log.warning("The Hub does not answer (%s): %s is what the cache has of it.", _said(error), reference)
                settled = True
        with offline(settled):
            config: Path | None = None
            try:
                config = download(CONFIG, revision)
            except Exception as error:
                if not _is(error, "EntryNotFoundError"):
                    raise
            weights = download(WEIGHTS, revision if config is None else config.parent.name)
    _require_whole(reference, weights, config)
    return weights


def _require_whole(reference: Reference, weights: Path, config: Path | None) -> None:
    """Throw away weights that are not those the repository's ``config.json`` names."""
    try:
        said = {} if config is None else read_json(config)
        expected = said.get("weights", {}).get("sha256")
    except (ValueError, OSError, AttributeError):
        raise CheckpointError(f"{CONFIG} of {reference} cannot be read: it is damaged, or no run's.") from None
    if expected is None or checksums([weights], "Weights")[0] == expected:
        return
    for path in {weights.resolve(), weights}:
        path.unlink(missing_ok=True)
    raise CheckpointError(
        f"{WEIGHTS} of {reference} is not the file that its {CONFIG} names (the checksum differs), and was thrown "
        "away: the same command fetches it again; if it says this once more, the repository is damaged."
    )


def write_config(folder: Path, header: Mapping[str, Any], weights: Path) -> Path:
    """``config.json`` of a repository: what of a run others need to know without its weights.

    Folders of this machine are left out of paths.
    """
    config = _portable(header["config"])
    said = {
        "library_name": LIBRARY,
        "architecture": {"model": config.get("model"), "encoder": config["encoder"].get("name"), **config["decoder"]},
        "id2label": {str(index): name for index, name in enumerate(header["classes"])},
        "palette": header["palette"],
        "weights": {"file": WEIGHTS, "sha256": checksums([weights])[0], "bytes": weights.stat().st_size},
        "encoder": header.get("encoder") and _portable(header["encoder"]),
        "config": config,
        "versions": header.get("versions"),
    }
    return write_text(folder / CONFIG, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def folders_of_this_machine(value: Any, key: str = "") -> list[str]:
    """``KEY=PATH`` of each absolute path in a configuration."""
    if isinstance(value, Mapping):
        return [each for name, inside in value.items() for each in folders_of_this_machine(inside, f"{key}.{name}")]
    if isinstance(value, list):
        return [each for inside in value for each in folders_of_this_machine(inside, key)]
    return [f"{key[1:]}={value}"] if isinstance(value, str) and os.path.isabs(value) else []


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _portable(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [_portable(inside) for inside in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def require_login() -> None:
    """Raise an ``OutputError`` where no token of the Hub is known here."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise OutputError(f"Nobody is logged in to the Hub: {_LOGIN}; or write a folder with --to-folder DIR.")


def push(folder: Path, files: Sequence[str], repository: str, *, private: bool, message: str) -> str:
    """Put files of a folder into a repository as one commit, made where it is missing; returns the commit's address.

    Raises:
        OutputError: they cannot be put there, or did not arrive as they are; or it is public although ``private``.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from whitebox.models.hub import offline, require_answer

    require_login()
    with _pushing(repository), offline(False):
        require_answer()
        api = HfApi(library_name=LIBRARY)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise OutputError(
                f"{repository} is there and public, so nothing was put into it: make it private on the Hub, or choose "
                "another name."
            )
        operations = [CommitOperationAdd(name, folder / name) for name in files]
        done = api.create_commit(repository, operations, commit_message=message)
        _require_arrived(api, repository, str(done.oid), folder / WEIGHTS)
    return str(done.commit_url)


def _require_arrived(api: HfApi, repository: str, commit: str, weights: Path) -> None:
    (found,) = api.get_paths_info(repository, [WEIGHTS], revision=commit)
    stored = getattr(getattr(found, "lfs", None), "sha256", None)
    if stored is not None and stored != checksums([weights])[0]:
        raise OutputError(f"{WEIGHTS} did not arrive at {repository} as it is (the checksum differs): push again.")


@contextmanager
def _pushing(repository: str) -> Iterator[None]:
    """Make one line of what the client raises."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:  # the client raises errors of several libraries; the user can mend them alike
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            raise OutputError(f"The Hub does not know your token: {_LOGIN}.") from error
        if status == 403:
            raise OutputError(
                f"Your token may not write to {repository}: use one with the right to write, or another name."
            ) from error
        raise OutputError(
            f"Nothing was put into {repository} ({_said(error)}): the same command tries again, --to-folder DIR "
            "writes a folder instead."
        ) from error


@contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    """Make one line of what the client raises."""
    try:
        yield
    except Exception as error:  # see `_pushing`
        raise CheckpointError(_reason(error, reference)) from error


def _reason(error: Exception, reference: Reference) -> str:
    repository = reference.repository
    if _is(error, "GatedRepoError"):
        return (
            f"{repository} is given to who has accepted its terms: do so at https://huggingface.co/{repository}, then "
            f"{_LOGIN}."
        )
    if _is(error, "RepositoryNotFoundError"):
        return f"There is no {repository} on the Hub that you may see: check the name; if it is private, {_LOGIN}."
    if _is(error, "RevisionNotFoundError"):
        return f"{repository} has no revision {reference.revision}: give a branch, a tag or a commit of it."
    if _is(error, "LocalEntryNotFoundError") or _is(error, "OfflineModeIsEnabled"):
        return f"{reference} is not in the cache, and the Hub is not asked (HF_HUB_OFFLINE is set): unset it once."
    if _is(error, "EntryNotFoundError"):
        return f"{repository} holds no {WEIGHTS}: it is no run of whitebox."
    return (
        f"{reference} could not be fetched ({_said(error)}), and the cache does not have it: the same command tries "
        "again; without a network name a run that is here."
    )


def _is(error: BaseException, name: str) -> bool:
    """Whether an error is of a class of the client's, or of one below it; versions have them in several places."""
    return any(each.__name__ == name for each in type(error).__mro__)


def _said(error: BaseException) -> str:
    while error.__cause__ is not None:  # the client's own words are about what it was doing
        error = error.__cause__
    said = scrubbed(" ".join(str(error).split()))[:120]
    return f"{type(error).__name__}{': ' if said else ''}{said}"


def scrubbed(text: str) -> str:
    """A text without the user's token, anything that looks like one, and passwords of proxies."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"\bhf_\w{8,}", "***", re.sub(r"://[^/@\s]+@", "://***@", text))
