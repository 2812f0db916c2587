"""Opens and prepares the data set that a config names, such as folder:PATH.

A new kind of source is a module with a subclass of `Source` and two functions, and a line in
`KINDS`. The functions are

- `open_split(name, data, split, *, field) -> Source`, as `open_source`;
- `prepare(name, data_dir) -> str`, as `prepare_source`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxcls.config.decoding import nearest
from jaxcls.data.source import Source
from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

# Kind -> its module, imported only when needed (TFDS takes a second), and what users write.
KINDS = {
    "digits": ("jaxcls.data.digits", ("digits",)),
    "tfds": ("jaxcls.data.tfds", ("tfds:NAME", "tfds:NAME:VERSION")),
    "folder": ("jaxcls.data.folder", ("folder:PATH",)),
    "hf": ("jaxcls.data.hf", ("hf:NAME", "hf:NAME:CONFIG")),
    "webdataset": ("jaxcls.data.webdataset", ("webdataset:SHARDS",)),
    "csv": ("jaxcls.data.csv_file", ("csv:FILE",)),
}


def open_source(data: "DataConfig", split: str, *, field: str | None = None) -> Source:
    """Opens one split of the data set that `data.source` names.

    With `data.prepare`, a set that is not prepared yet is prepared first.

    Args:
      data: `source`, and the fields that its kind uses.
      split: a split in TFDS syntax, for example "train[:90%]".
      field: the name of the field or option that gave the split, for error messages (None: the
        field of `data` with this value).

    Raises:
      DataError: there is no such source, set or split, or the set is not prepared, damaged, empty,
        or not an image classification set.
    """
    module, name = _parse(data.source)
    fields = {data.eval_split: "data.eval_split", data.train_split: "data.train_split"}
    return module.open_split(name, data, split, field=field or fields.get(split, "--split"))


def prepare_source(source: str, data_dir: str | None = None) -> str:
    """Makes a data set ready to be opened: downloads, converts or indexes it where needed.

    Args:
      source: as `data.source`.
      data_dir: as `data.data_dir`.

    Returns:
      A line for the user: the place of the data set and the sizes of its splits.

    Raises:
      DataError: it cannot be prepared; the message says what to do.
    """
    module, name = _parse(source)
    return module.prepare(name, data_dir)


def _parse(source: str) -> tuple[Any, str]:
    """Returns the module of a source's kind, and the name after the colon.

    Raises:
      DataError: an unknown kind, or a missing name.
    """
    kind, colon, name = source.partition(":")
    if kind in KINDS:
        module, forms = KINDS[kind]
        takes_name = forms[0] != kind
        if name if takes_name else not colon:
            return importlib.import_module(module), name
    hint = "" if kind in KINDS else nearest(kind, KINDS)
    known = ", ".join(form for _, forms in KINDS.values() for form in forms)
    raise DataError(f"data.source: unknown source {source!r}{hint} (known: {known})")
