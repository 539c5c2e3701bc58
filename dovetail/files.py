"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO


def check_writable(path: str | Path) -> None:
    """Finds out now whether `path` can be written later. Raises `OSError` that says why not; creates nothing."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, expected the name of a file to write")
    folder = path.parent
    if not folder.exists():
        raise FileNotFoundError(f"{path}: cannot be written, there is no folder {str(folder)!r}; create it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"{path}: cannot be written, {str(folder)!r} is not a folder")
    try:
        handle, probe = tempfile.mkstemp(dir=folder, prefix=f".{path.name[:80]}.")
    except OSError as error:
        raise PermissionError(f"{path}: cannot be written ({error.strerror or error})") from None
    os.close(handle)
    os.unlink(probe)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file of bytes that takes the place of `path` when the block ends, and vanishes when the block fails.

    Raises `OSError` naming `path` when it cannot be written.
    """
    path = Path(path)
    check_writable(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # what open() would have given; mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[TextIO]:
    """The same for text in UTF-8."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()
