"""Weights in jaxcls' own files: safetensors with our names, and what one needs to know in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from jaxcls.config.decoding import ConfigError, decode_fields, encode_fields
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.files import WeightsFile
from jaxcls.system.paths import local_path
from jaxcls.system.whole_files import write_whole

_KEY = "jaxcls"  # of the file's metadata
_VERSION = 1


def write_weights(path: str | Path, variables: Mapping[str, Any], info: WeightsInfo) -> None:
    """Writes a whole file or nothing; `import_variables` gets the same bits back.

    Args:
      path: of the file; its folder is made, and a file that is there is replaced.
      variables: {"params": …, "batch_stats": …}, nested, float32.
      info: what the weights belong to; it goes with them.

    Raises:
      WeightsError: the file cannot be written.
    """
    path = local_path(path)
    kept = {collection: variables[collection] for collection in ("params", "batch_stats")}
    arrays = {
        name: np.ascontiguousarray(array, np.float32)
        for name, array in traverse_util.flatten_dict(kept, sep="/").items()
    }
    stored = {"version": _VERSION, "info": encode_fields(info)}
    content = save(arrays, {_KEY: json.dumps(stored, allow_nan=False)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); name another") from error


def stored_info(file: WeightsFile) -> WeightsInfo | None:
    """What `write_weights` stored with the weights; None in a file that it did not write.

    Raises:
      WeightsError: what is stored there is damaged, or of a newer version of jaxcls.
    """
    if _KEY not in file.metadata:
        return None
    where = f"{file.path}: metadata {_KEY!r}"
    try:
        stored = json.loads(file.metadata[_KEY])
        version, values = stored["version"], stored["info"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{where} is damaged ({error!r}); convert the weights again") from error
    if version != _VERSION:
        raise WeightsError(
            f"{where} has version {version!r}, and this jaxcls reads {_VERSION}; use a newer one"
        )
    try:
        info = decode_fields(WeightsInfo, values, prefix="")
    except ConfigError as error:
        raise WeightsError(f"{where}: {error}; convert the weights again") from error
    except TypeError as error:  # a field without a default is not there
        raise WeightsError(f"{where} is damaged ({error}); convert the weights again") from error
    return info
