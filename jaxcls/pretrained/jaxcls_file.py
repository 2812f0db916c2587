"""jaxcls's own weights files: safetensors with jaxcls's names, and a `WeightsInfo` as metadata."""

import dataclasses
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
from jaxcls.system.file_names import printable
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import local_path
from jaxcls.system.whole_files import write_whole

_KEY = "jaxcls"  # of the file's metadata
_VERSION = 1


def write_weights(path: str | Path, variables: Mapping[str, Any], info: WeightsInfo) -> None:
    """Writes the whole file or nothing; `import_variables` reads the same bits.

    Args:
      path: the file; its folder is created, and an existing file is replaced.
      variables: {"params": …, "batch_stats": …}, nested, float32.
      info: the network and preprocessing of the weights, to be saved with them.

    Raises:
      WeightsError: the file cannot be written.
    """
    path = local_path(path)
    kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
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
    """Returns the info that `write_weights` saved; None for a file that it did not write.

    Raises:
      WeightsError: the info is damaged, or from a newer version of jaxcls.
    """
    if _KEY not in file.metadata:
        return None
    where = f"{file.path}: metadata {_KEY!r}"
    try:
        stored = parse_json(file.metadata[_KEY])
        version, values = stored["version"], stored["info"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{where} is damaged ({error!r}); convert the weights again") from error
    if version != _VERSION:
        raise WeightsError(
            f"{where} has version {version!r}, but this jaxcls reads {_VERSION}; use a newer jaxcls"
        )
    try:
        info = decode_fields(WeightsInfo, values, prefix="")
    except ConfigError as error:
        raise WeightsError(f"{where}: {error}; convert the weights again") from error
    except TypeError as error:  # a field without a default is missing
        raise WeightsError(f"{where} is damaged ({error}); convert the weights again") from error
    if len(info.mean) != len(info.std):
        raise WeightsError(
            f"{where}: mean has {len(info.mean)} numbers and std {len(info.std)}; convert the "
            f"weights again"
        )
    if info.class_names is None:
        return info
    return dataclasses.replace(info, class_names=tuple(map(printable, info.class_names)))
