"""Bytes of cases over HTTP, with the ranges that shards are read by: what a browser's viewer streams.

Only what lies inside a case (a folder named *.zarr) of a cohort that is served; the table, and whatever else lies there, stays.
"""

import re
from dataclasses import dataclass

from casebook.location import filesystem, join, store_errors
from rayters.serving.places import NOT_HERE, Places
from rayters.serving.refusal import RefusedError

MOST_BYTES = 64 * 2**20  # of one answer; a shard's chunks are far smaller


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes first .. first + len(data) - 1 of an object of ``size`` bytes."""

    data: bytes
    first: int
    size: int


def read_piece(places: Places, cohort: str, path: str, wanted: str | None, *, head: bool = False) -> Piece:
    """wanted: a Range header, or None for all of it. head: no data, only the size.

    Raises:
        RefusedError: 404 for what is not served, 413 for too much at once, 416 for a range that is not there.
    """
    if cohort not in places.roots or ".zarr/" not in path:
        raise RefusedError(404, NOT_HERE)
    url = places.inside(join(places.roots[cohort], path))
    fs, place = filesystem(url)
    with store_errors(url):
        try:
            info = fs.info(place)
        except FileNotFoundError:
            raise RefusedError(404, NOT_HERE) from None
        if info["type"] != "file":
            raise RefusedError(404, NOT_HERE)
        size = int(info["size"])
        first, stop = parse_range(wanted, size)
        if not head and stop - first > MOST_BYTES:
            raise RefusedError(413, f"{stop - first:,} bytes at once, {MOST_BYTES:,} are given: ask for a range")
        data = b"" if head or stop == first else bytes(fs.cat_file(place, start=first, end=stop))
    return Piece(data=data, first=first, size=size)


def parse_range(wanted: str | None, size: int) -> tuple[int, int]:
    """First byte and one past the last.

    >>> parse_range("bytes=2-3", 10), parse_range("bytes=-4", 10), parse_range("bytes=7-", 10), parse_range(None, 10)
    ((2, 4), (6, 10), (7, 10), (0, 10))

    Raises:
        RefusedError: 416 for anything else, and for what lies beyond the end.
    """
    if wanted is None:
        return 0, size
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    if found is None or found[0].strip() == "bytes=-":
        raise RefusedError(416, "one range was expected, as bytes=0-99 or bytes=-100")
    if not found[1]:
        return max(0, size - int(found[2])), size
    first, stop = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if first >= stop:
        raise RefusedError(416, f"the object has {size} bytes")
    return first, stop
