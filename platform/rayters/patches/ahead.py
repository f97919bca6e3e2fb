"""Work done ahead in threads, results in order: how blocks are read while a batch is being used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """function(item) for each item, in order; at most ``ahead`` results wait. Nothing is started after the reader stops."""
    if threads == 0:
        yield from map(function, items)
        return
    queue: deque[Future[R]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="rayters-read") as pool:
        try:
            queue.extend(pool.submit(function, item) for item in islice(source, ahead))
            while queue:
                result = queue.popleft().result()
                queue.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
        finally:
            for future in queue:
                future.cancel()
