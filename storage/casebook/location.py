"""Where things lie: local paths, memory:// and any other fsspec URL, as plain strings that may be pickled and printed.

A URL never carries a credential; those come from the environment of the process that reads.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from casebook.errors import CasebookError, CaseFormatError, CaseNotFoundError, StoreError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+=-]{0,126}")


def canonical(url: str | os.PathLike[str]) -> str:
    """The one spelling of a URL: an absolute path for local files, no trailing slash.

    Raises:
        CaseFormatError: when the URL carries a user name, a password or a query.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme in ("file", "local"):
        return os.path.abspath(rest if separator else text)
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise CaseFormatError(
            f"a {scheme}:// URL with a user, a password or a query was given: credentials belong in the environment"
        )
    return f"{scheme}://{rest.rstrip('/')}" if rest.strip("/") else text


def is_local(url: str) -> bool:
    return "://" not in url


def scheme(url: str) -> str:
    """'file', 's3', 'memory' ..."""
    return "file" if is_local(url) else url.partition("://")[0]


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def parent(url: str) -> str:
    return url.rpartition("/")[0]


def last_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def check_name(name: str, what: str) -> str:
    """The name itself when it can be a folder on every store; refuses '..', slashes, spaces and empty names."""
    if not SAFE_NAME.fullmatch(name) or name.endswith("."):
        raise CaseFormatError(
            f"{what} {name!r} cannot be a folder name: use letters, digits and . _ - + = @, at most 127 of them"
        )
    return name


def safe_name(text: str) -> str:
    """The nearest name that `check_name` accepts."""
    return re.sub(r"[^A-Za-z0-9._@+=-]+", "-", text).strip("-._@+=")[:127].rstrip(".") or "unnamed"


def relative_to(url: str, folder: str) -> str:
    """`url` as seen from `folder` when it lies inside, else unchanged."""
    return url[len(folder) + 1 :] if url.startswith(folder + "/") else url


def absolute_from(url: str, folder: str) -> str:
    """The inverse of `relative_to`; refuses a relative URL that climbs out of the folder."""
    if "://" in url or url.startswith("/"):
        return canonical(url)
    if ".." in url.split("/") or "\\" in url:
        raise CaseFormatError(
            f"{url!r} in {folder} points outside its folder: the table is damaged or not to be trusted"
        )
    return join(folder, url)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path inside it."""
    with store_errors(url):
        fs, path = fsspec.core.url_to_fs(url)
    return fs, path


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns what file systems and object stores raise into casebook errors that name the place and no secret."""
    try:
        yield
    except CasebookError:
        raise
    except FileNotFoundError as error:
        raise CaseNotFoundError(
            f"nothing lies at {url}: check the spelling, and that the store is mounted or reachable"
        ) from error
    except PermissionError as error:
        raise StoreError(f"access to {url} was refused: {_remedy(url)}") from error
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"{url} cannot be reached ({_first_line(error)}): is the protocol right and its fsspec package installed?"
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            ("botocore", "aiobotocore", "aiohttp", "asyncio")
        ):
            raise
        raise StoreError(f"the store did not serve {url} ({_first_line(error)}): {_remedy(url)}") from error


def _remedy(url: str) -> str:
    if scheme(url) != "s3":
        return "check the permissions and the free space"
    bucket = url.partition("://")[2].partition("/")[0]
    variables = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
    return f"check that bucket {bucket!r} exists and that {variables} of this process may use it"


_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def _first_line(error: BaseException) -> str:
    """The error's kind and first line, without this process's credentials or anything that looks like one."""
    line = (str(error).splitlines() or [""])[0]
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        line = line.replace(secret, "***")
    line = re.sub(r"(?i)(key|token|secret|signature|credential)([^\s]*[=:]\s*)[^\s&,;]+", r"\1\2***", line[:200])
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    with store_errors(url):
        return bytes(fs.cat_file(path))


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole object at once: readers see the old or the new bytes, never a part."""
    fs, path = filesystem(url)
    with store_errors(url):
        if isinstance(fs, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            unfinished = f"{path}.{uuid.uuid4().hex[:8]}.unfinished"
            Path(unfinished).write_bytes(data)
            os.replace(unfinished, path)
        else:
            fs.pipe_file(path, data)


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    with store_errors(url):
        return bool(fs.exists(path))


def remove(url: str) -> None:
    """Removes a file or a whole tree; nothing there is fine."""
    fs, path = filesystem(url)
    with store_errors(url):
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm(path, recursive=True)


def list_names(url: str) -> list[str]:
    """The sorted names directly inside a folder; an absent folder has none."""
    fs, path = filesystem(url)
    with store_errors(url):
        fs.invalidate_cache()
        try:
            return sorted(
                last_name(str(entry)) for entry in fs.ls(path, detail=False) if last_name(str(entry)) != last_name(path)
            )
        except FileNotFoundError:
            return []


def read_json(url: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CaseNotFoundError: when nothing is there.
        CaseFormatError: when it is not a JSON object.
    """
    data = read_bytes(url)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaseFormatError(
            f"{url} is not valid JSON ({_first_line(error)}): restore the file, or write the case again"
        ) from error
    if not isinstance(document, dict):
        raise CaseFormatError(f"{url} holds a {type(document).__name__}, a JSON object was expected: restore the file")
    return document


def write_json(url: str, document: dict[str, Any]) -> None:
    write_bytes(url, json.dumps(document, indent=2, allow_nan=False).encode())
