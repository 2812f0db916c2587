"""Opens and prepares the data set that a config names: digits, tfds:NAME or folder:PATH.

A new kind of source is a subclass of `Source` in a file of its own, and a branch here.
"""

from typing import TYPE_CHECKING

from jaxcls.config.decoding import nearest
from jaxcls.data.source import Source
from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

KNOWN = ("digits", "tfds:NAME", "tfds:NAME:VERSION", "folder:PATH")


def open_source(data: "DataConfig", split: str, *, field: str | None = None) -> Source:
    """Opens one split of the data set that `data.source` names.

    With `data.prepare`, a set that is not there yet is prepared first.

    Args:
      data: `source`, and the fields that belong to its kind.
      split: a split in TFDS syntax, for example "train[:90%]".
      field: where it was asked for, for messages (None: the field of `data` that has it).

    Raises:
      DataError: no such source, set or split, or a set that is not prepared, damaged, empty, or no
        image classification set.
    """
    kind, name = _parse(data.source)
    fields = {data.eval_split: "data.eval_split", data.train_split: "data.train_split"}
    field = field or fields.get(split, "--split")
    if kind == "folder":
        from jaxcls.data.folder import open_folder

        return open_folder(
            name,
            split,
            test_share=data.test_share,
            seed=data.split_seed,
            reuse_index=data.folder_index == "reuse",
            field=field,
        )
    from jaxcls.data import tfds

    if kind == "digits":
        from jaxcls.data.digits import prepared_digits

        folder = prepared_digits(data.data_dir)
        return tfds.open_prepared(folder, name="digits", split=split, field=field)
    if data.prepare:
        from jaxcls.data.tfds_prepare import prepare_set

        folder = prepare_set(name, data.data_dir)
    else:
        folder = tfds.find_prepared(name, data.data_dir)
    keys = (data.image_key, data.label_key)
    name = name.partition(":")[0]
    return tfds.open_prepared(folder, name=name, split=split, keys=keys, field=field)


def prepare_source(source: str, data_dir: str | None = None) -> str:
    """Makes a data set ready to be opened, as far as it is not: downloads, converts, indexes.

    Args:
      source: as `data.source`.
      data_dir: as `data.data_dir`.

    Returns:
      Where it lies and how many examples its splits have, as a line for a person.

    Raises:
      DataError: it cannot be prepared; the message says what to do.
    """
    kind, name = _parse(source)
    if kind == "folder":
        from jaxcls.data.folder import describe_folder

        return describe_folder(name)
    from jaxcls.data import tfds

    if kind == "digits":
        from jaxcls.data.digits import prepared_digits

        return tfds.describe_prepared(prepared_digits(data_dir), name="digits")
    from jaxcls.data.tfds_prepare import prepare_set

    return tfds.describe_prepared(prepare_set(name, data_dir), name=name.partition(":")[0])


def _parse(source: str) -> tuple[str, str]:
    """Kind and name of a source.

    Raises:
      DataError: an unknown kind, or no name.
    """
    kind, _, name = source.partition(":")
    if source == "digits" or (kind in ("tfds", "folder") and name):
        return kind, name
    kinds = ["digits", "tfds", "folder"]
    hint = "" if kind in kinds else nearest(kind, kinds)
    raise DataError(f"data.source: unknown source {source!r}{hint} (known: {', '.join(KNOWN)})")
