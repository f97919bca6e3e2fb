"""How much one holder of a token may ask for: a bucket that fills at a steady rate and holds a burst.

Each front replica counts for itself: with n of them a holder may have n times the rate.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from rayters.serving.refusal import RefusedError

MOST_HOLDERS = 10_000  # the longest unseen is forgotten first


class RateLimit:
    """per_second: requests that a bucket gains; burst: requests that it holds. per_second=0 limits nothing."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, holder: str) -> None:
        """Counts one request.

        Raises:
            RefusedError: 429 with the seconds to wait, when the bucket is empty.
        """
        if self.per_second <= 0:
            return
        now = self.clock()
        left, then = self._left.pop(holder, (float(self.burst), now))
        left = min(self.burst, left + (now - then) * self.per_second)
        self._left[holder] = (max(left - 1, 0.0) if left >= 1 else left, now)
        while len(self._left) > MOST_HOLDERS:
            self._left.popitem(last=False)
        if left < 1:
            wait = int((1 - left) / self.per_second) + 1
            raise RefusedError(
                status=429,
                detail=f"more than {self.per_second:g} requests a second: wait {wait} s",
                retry_after_s=wait,
            )
