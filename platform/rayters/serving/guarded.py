"""The first thing that a request meets: size, time, headers that close the browser's doors, one log line, one count."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from rayters.serving.logs import log_request
from rayters.serving.settings import Limits

Scope = dict[str, Any]
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' blob: data:; font-src 'self' data:; frame-src 'self'; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'self'"
)
# neuroglancer's decoders (zstd among them) are WebAssembly whose glue code evaluates strings: its own files may, our page may not
VIEWER_POLICY = POLICY.replace("'wasm-unsafe-eval'", "'wasm-unsafe-eval' 'unsafe-eval'")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
)


class Guarded:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Any, *, limits: Limits, count: Callable[[str, int, float], None]) -> None:
        self.app, self.limits, self.count = app, limits, count

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = _Seen(self.limits, scope, receive, send)
        try:
            await self.app(scope, seen.receive, seen.send)
        except Exception:
            if not seen.status:
                seen.status = 500
            raise
        finally:
            self._tell(scope, seen)

    def _tell(self, scope: Scope, seen: "_Seen") -> None:
        route = getattr(scope.get("route"), "path", "-")
        seconds = time.perf_counter() - seen.started
        self.count(route, seen.status, seconds)
        log_request(
            method=scope["method"],
            route=route,
            status=seen.status,
            seconds=seconds,
            bytes_in=seen.bytes_in,
            bytes_out=seen.bytes_out,
            holder=scope.get("state", {}).get("holder", "-"),
            request=seen.id,
        )


class _Seen:
    """What passes by of one request."""

    def __init__(self, limits: Limits, scope: Scope, receive: Any, send: Any) -> None:
        self.limits, self._receive, self._send = limits, receive, send
        self.id, self.started = secrets.token_hex(6), time.perf_counter()
        self.status = self.bytes_in = self.bytes_out = 0
        scope.setdefault("state", {})["request"] = self.id
        said = dict(scope["headers"]).get(b"content-length", b"0")
        self.claimed = int(said) if said.isdigit() else 0
        self.whole = False

    async def receive(self) -> Any:
        """Raises HTTPException, which FastAPI lets pass: 413 as soon as more is claimed or comes than may, 408 when it comes too slowly."""
        if self.whole:
            return await self._receive()  # waits for the client to leave; that may take as long as it likes
        self._check(self.claimed)
        left = self.limits.body_seconds - (time.perf_counter() - self.started)
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.01))
        except TimeoutError:
            raise HTTPException(
                408, f"the request was not here after {self.limits.body_seconds:g} s: try again"
            ) from None
        self.bytes_in += len(message.get("body", b""))
        self._check(self.bytes_in)
        self.whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self.limits.upload_bytes:
            raise HTTPException(
                413, f"a request may have {self.limits.upload_bytes:,} bytes, this one has more: send a smaller piece"
            )

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message.get("headers", [])}
            extra = [(name, value) for name, value in HEADERS if name not in own]
            message = {
                **message,
                "headers": [*message.get("headers", []), *extra, (b"x-request-id", self.id.encode())],
            }
        self.bytes_out += len(message.get("body", b""))
        await self._send(message)
