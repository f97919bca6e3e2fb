"""The files of a folder: a .zarr folder and a DICOM series count as one file each, hidden ones not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

from casebook.errors import CaseNotFoundError


def list_files(folder: str) -> list[str]:
    """Relative paths, with / between the parts; a DICOM series ends in /.

    Raises:
        CaseNotFoundError: no such folder.
    """
    if not os.path.isdir(folder):
        raise CaseNotFoundError(f"no folder lies at {folder}: check the spelling")
    return list(_files(folder))


def _files(folder: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        relative = os.path.relpath(here, folder).replace(os.sep, "/")
        start = "" if relative == "." else relative + "/"
        if start and any(name.endswith(".dcm") for name in names) and _is_series(here):
            yield start
            continue
        yield from (start + name for name in sorted(names) if not name.startswith("."))
        yield from (start + name for name in sorted(folders) if name.endswith(".zarr"))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))


def _is_series(folder: str) -> bool:
    try:
        from casebook.formats.dicom import is_series
    except ImportError:
        return False  # without the extra the files are listed one by one, and told as unreadable
    return is_series(Path(folder))
