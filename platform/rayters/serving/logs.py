"""Structured logs: one JSON object a line, of a fixed set of fields, so that no pixel, token, file name or query can slip in."""

import json
import logging
import re
import sys
import time

LOGGER = logging.getLogger("rayters.serving")
_PLAIN = re.compile(r"[A-Za-z0-9._@+=/{}:-]{0,120}")


def configure() -> None:
    """One handler to standard error, lines as they are."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False


def log_request(
    *, method: str, route: str, status: int, seconds: float, bytes_in: int, bytes_out: int, holder: str, request: str
) -> None:
    """What happened. route: the pattern of the path, not the path. holder: the id of the token. request: a random id."""
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "method": plain(method),
        "route": plain(route),
        "status": status,
        "ms": round(1e3 * seconds, 1),
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "holder": plain(holder),
        "request": plain(request),
    }
    LOGGER.log(logging.WARNING if status >= 500 else logging.INFO, json.dumps(line))


def plain(text: str) -> str:
    """The text if it can be nothing but a name, else a dash: no line breaks, no forged fields."""
    return text if _PLAIN.fullmatch(text) else "-"
