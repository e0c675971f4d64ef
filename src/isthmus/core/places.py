"""Files and folders that appear as a whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isthmus.core.errors import OutputError


@contextmanager
def atomic_folder(
    path: Path, *, replace: bool = False, further: tuple[type[Exception], ...] = ()
) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the body ends, and vanishes if it raises.

    Args:
        path: The folder to make; its parents are made too.
        replace: Whether a folder that is already there may be replaced, as a whole; it stays until
            the new one is complete, and comes back if that cannot take its place.
        further: Errors of writers in the body that mean that the place cannot be written to.

    Yields:
        Path: A folder beside `path` to write into.

    Raises:
        OutputError: If the place cannot be written to, is a file, or is a folder with something in
            it, before or by the end of the body, and `replace` is false.
    """
    # What stands behind "." or a link is replaced, not its name.
    path = Path(path).resolve()
    with writing_to(path):
        if is_taken(path) and not (replace and path.is_dir()):
            raise OutputError(f"{path} already exists: choose another --out or remove it first")
        staging = _folder_beside(path)
    try:
        with writing_to(path, further):
            staging.chmod(0o755)
            yield staging
            if replace and path.is_dir():
                _exchange(staging, path)
            else:
                staging.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Refuses a place at which no file or folder can be made.

    Args:
        path: What will be written; it need not be there.

    Raises:
        OutputError: If it is a mount point, or nothing can be written where it lies.
    """
    path = Path(path).resolve()
    if path.is_mount():
        raise OutputError(f"cannot write to {path}, a mount point: name a folder within it")
    with writing_to(path):
        above = next(folder for folder in path.parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise OutputError(f"cannot write to {path}: nothing can be written to {above}")


def require_replaceable(path: Path, marker: str) -> None:
    """Refuses, before any work is done, to replace anything but an earlier result of its kind.

    Args:
        path: Results folder that will be written.
        marker: Name of a file that every such folder holds.

    Raises:
        OutputError: If something else is there, or nothing can be written there.
    """
    require_writable(path)
    if is_taken(path) and not (path / marker).is_file():
        raise OutputError(
            f"{path} exists, holds no {marker} and is not a results folder: choose another --out"
        )


def is_taken(path: Path) -> bool:
    """Says whether something is there; an empty folder is a place, not a thing."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


@contextmanager
def writing_to(path: Path, further: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what goes wrong with files into an error about a place.

    Args:
        path: What is being written.
        further: Errors of the writer that mean the same as those of the system.

    Yields:
        None: While the body writes.

    Raises:
        OutputError: If the body raises one of these errors.
    """
    expected: tuple[type[Exception], ...] = (OSError, *further)
    try:
        yield
    except expected as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to {path}: {reason}") from error


def _folder_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))


def _exchange(staging: Path, path: Path) -> None:
    aside = _folder_beside(path)
    old = aside / "old"
    try:
        path.rename(old)
        staging.rename(path)
    finally:
        # Should this fail too, the old folder is not lost: it stays in `aside`.
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that readers see either the old or the whole new content.

    Args:
        path: The file; its parents are made too.
        text: What it shall hold, as UTF-8.

    Raises:
        OutputError: If the place cannot be written to.
    """
    path = Path(path)
    with file_beside(path) as staging, writing_to(path):
        staging.write_text(text, encoding="utf-8", newline="")


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Yields an empty file that takes the place of `path` when the body ends without an error.

    Args:
        path: The file; its parents are made too.

    Yields:
        Path: The file to write.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    staging = Path(name)
    try:
        yield staging
        with writing_to(path):
            staging.chmod(0o644)
            staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
