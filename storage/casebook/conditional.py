"""Changing one small object that others may be changing too: nobody's change is lost.

Object stores: the new bytes are accepted only if the object is still the one that was read (If-Match), or still absent
(If-None-Match); otherwise the change is computed again from the newer bytes. Local files: a lock on the folder.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from casebook.errors import CaseFormatError, CaseNotFoundError, ConflictError
from casebook.location import filesystem, is_local, parent, read_bytes, scheme, store_errors, write_bytes

TRIES = 10
_here = threading.RLock()  # for stores that live in this process


def replace_bytes(url: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replaces the object by `change(its bytes)`; None when absent. `change` may be called several times.

    Raises:
        ConflictError: others were faster ten times in a row.
    """
    if scheme(url) == "s3":
        _replace_s3(url, change)
        return
    with _folder_lock(parent(url) or ".") if is_local(url) else _here:
        write_bytes(url, change(_bytes_or_none(url)))


def create_bytes(url: str, data: bytes) -> None:
    """Writes an object that must not exist yet.

    Raises:
        ConflictError: it exists.
    """

    def change(old: bytes | None) -> bytes:
        if old is not None:
            raise ConflictError(f"{url} exists already: choose another place")
        return data

    replace_bytes(url, change)


def replace_json(url: str, change: Callable[[dict[str, Any]], dict[str, Any]], *, absent: dict[str, Any]) -> None:
    """`replace_bytes` for a JSON object; `absent` stands for one that is not there."""

    def on_bytes(old: bytes | None) -> bytes:
        try:
            return json.dumps(change(json.loads(old) if old is not None else absent), indent=2).encode()
        except (ValueError, KeyError, TypeError) as error:
            raise CaseFormatError(f"{url} is damaged ({error}): restore it from a copy") from error

    replace_bytes(url, on_bytes)


def _bytes_or_none(url: str) -> bytes | None:
    try:
        return read_bytes(url)
    except CaseNotFoundError:
        return None


@contextmanager
def _folder_lock(folder: str) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when that process dies."""
    with store_errors(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _here:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
    finally:
        os.close(descriptor)


def _replace_s3(url: str, change: Callable[[bytes | None], bytes]) -> None:
    fs, path = filesystem(url)
    for attempt in range(TRIES):
        tag = _tag(fs, path, url)
        try:
            old = read_bytes(url) if tag else None
        except CaseNotFoundError:
            continue
        new = change(old)
        try:
            with store_errors(url):
                fs.pipe_file(path, new, **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"}))
            return
        except OSError as error:
            if not _lost_race(error):
                raise
            time.sleep(0.05 * attempt)
    raise ConflictError(f"{url} was changed by others {TRIES} times while it was being changed here: try again")


def _tag(fs: Any, path: str, url: str) -> str | None:
    """The version of the object now; None when absent."""
    with store_errors(url):
        fs.invalidate_cache()
        try:
            return str(fs.info(path)["ETag"]).strip('"')  # radosgw compares it with the bare hash
        except FileNotFoundError:
            return None


def _lost_race(error: BaseException | None) -> bool:
    """Whether a store said 412 (or 409 for two conditional writes in the same instant), under whatever wrapping."""
    while error is not None:
        response = getattr(error, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409") or isinstance(
            error, FileExistsError
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
