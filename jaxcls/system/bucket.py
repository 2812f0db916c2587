"""The files of Google Cloud Storage, by gcsfs."""

import traceback
from typing import Any

from gcsfs import GCSFileSystem
from gcsfs.core import GCSFile


class BucketFile(GCSFile):
    """A file whose failed upload leaves nothing that could crash the program."""

    def _upload_chunk(self, final: bool = False) -> Any:
        try:
            return super()._upload_chunk(final)
        except BaseException as error:
            # The error's frames have a view of the file's buffer. A garbage collection that deletes
            # the buffer first crashes Python (https://github.com/python/cpython/issues/111331).
            traceback.clear_frames(error.__traceback__)
            raise


class BucketFileSystem(GCSFileSystem):
    """gcsfs' own file system, with our kind of files."""

    def _open(  # pyright: ignore[reportIncompatibleMethodOverride]  some options are not ours
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        consistency: str | None = None,
        **options: Any,
    ) -> BucketFile:
        return BucketFile(
            self,
            path,
            mode,
            block_size or self.default_block_size,
            consistency=consistency or self.consistency,
            **options,
        )
