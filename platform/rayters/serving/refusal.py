"""A request that is not served, with the reason and what to do about it."""

from typing import Any


class RefusedError(Exception):
    """status: of HTTP. detail: what was seen, what was expected, what to do; never a token, never what lies on the server's disk."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return RefusedError, (self.status, self.detail, self.retry_after_s)
