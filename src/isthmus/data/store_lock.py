"""A folder that one process at a time writes to."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isthmus.core.errors import OutputError
from isthmus.core.places import writing_to

if sys.platform != "win32":
    import fcntl


@contextmanager
def written_alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing a store; ends with the block, or with the process.

    Where folders cannot be locked, as on some network file systems, it keeps nobody away.

    Args:
        folder: The store; it is made where nothing is.

    Yields:
        None: While the folder is this process's.

    Raises:
        OutputError: If another process writes it, or it cannot be made.
    """
    with writing_to(folder):
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32" or not folder.is_dir():
        yield
        return
    with writing_to(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is writing {folder}: wait for it to end, or choose another place"
            ) from error
        except OSError:
            pass  # this file system has no locks for folders
        yield
    finally:
        os.close(handle)
