"""Who may ask for what: bearer tokens, of which the server keeps a hash, a scope and a last day.

A token is `rayters_<id>_<256 random bits>`: so much chance needs no slow hash, SHA-256 is enough. The file may lie at any URL that the
casebook reads; it is read again every few seconds, so a token that is taken out of it stops working without a restart.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from casebook import CasebookError, CaseNotFoundError
from casebook.conditional import replace_json
from casebook.location import read_json
from rayters.serving.refusal import RefusedError

SCOPES = ("predict", "admin")  # admin may do all that predict may
_SHAPE = re.compile(r"rayters_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
READ_AGAIN_S = 5.0
SESSION_S = 8 * 3600


@dataclass(frozen=True, kw_only=True)
class Token:
    """What the server knows of a token. sha256: of the whole token, hexadecimal. expires_on: ISO 8601, UTC."""

    id: str
    sha256: str
    scope: str
    expires_on: str
    holder: str = ""

    def expired(self, now: datetime) -> bool:
        return now >= datetime.fromisoformat(self.expires_on)

    def may(self, scope: str) -> bool:
        return self.scope in (scope, "admin")


def issue(url: str, *, scope: str, days: float, holder: str = "") -> str:
    """A new token, written to the file as a hash and returned this once.

    Raises:
        ValueError: an unknown scope or a life of no length.
    """
    if scope not in SCOPES or days <= 0:
        raise ValueError(f"scope {scope!r} for {days} days: a scope is one of {', '.join(SCOPES)}, days are positive")
    id = secrets.token_hex(4)
    secret = f"rayters_{id}_{secrets.token_urlsafe(32)}"
    last = datetime.now(UTC) + timedelta(days=days)
    token = Token(
        id=id, sha256=_hash(secret), scope=scope, expires_on=last.isoformat(timespec="seconds"), holder=holder
    )
    replace_json(url, lambda d: {"tokens": [*d["tokens"], asdict(token)]}, absent={"tokens": []})
    return secret


def revoke(url: str, id: str) -> None:
    """Takes a token out of the file.

    Raises:
        ValueError: there is none of this id.
    """
    if id not in {token.id for token in read_tokens(url)}:
        raise ValueError(f"no token {id!r} in {url}")
    replace_json(url, lambda d: {"tokens": [t for t in d["tokens"] if t["id"] != id]}, absent={"tokens": []})


def read_tokens(url: str) -> list[Token]:
    """Every token of the file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return [Token(**entry) for entry in read_json(url)["tokens"]]
    except CaseNotFoundError:
        return []
    except (KeyError, TypeError) as error:
        raise ValueError(f"{url} is no token file ({error}): make one with jobs/tokens.py") from error


class Gate:
    """Lets a request pass, or says why not."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.url, self.clock = url, clock
        self._tokens: dict[str, Token] = {}
        self._read_at = float("-inf")

    def check(self, authorization: str | None, scope: str) -> Token:
        """The token of an `Authorization: Bearer ...` header.

        Raises:
            RefusedError: 401 without, with a wrong or an expired token; 403 when its scope is not enough.
        """
        kind, _, secret = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise RefusedError(status=401, detail="no token: send the header 'Authorization: Bearer rayters_...'")
        found = _SHAPE.fullmatch(secret.strip())
        token = self._known().get(found[1]) if found else None
        if token is None or not hmac.compare_digest(token.sha256, _hash(secret.strip())):
            raise RefusedError(
                status=401, detail="this token is not known here: ask for one, or check that all of it was sent"
            )
        return self._admit(token, scope)

    def session(self, token: Token) -> str:
        """A cookie for the page: it can look, and nothing else, for some hours."""
        claim = f"{token.id}.{int(self.clock()) + SESSION_S}"
        return f"{claim}.{_sign(token, claim)}"

    def check_session(self, cookie: str | None) -> Token:
        """The token that a session was opened with.

        Raises:
            RefusedError: 401 when there is no session, it ended, or its token was taken away.
        """
        claim, _, signature = (cookie or "").rpartition(".")
        id, _, ends = claim.partition(".")
        token = self._known().get(id)
        if token is None or not hmac.compare_digest(signature, _sign(token, claim)) or int(ends) <= self.clock():
            raise RefusedError(status=401, detail="no session: open the page and give your token")
        return self._admit(token, "predict")

    def _admit(self, token: Token, scope: str) -> Token:
        if token.expired(datetime.fromtimestamp(self.clock(), UTC)):
            raise RefusedError(status=401, detail=f"this token expired on {token.expires_on}: ask for a new one")
        if not token.may(scope):
            raise RefusedError(
                status=403, detail=f"this token may '{token.scope}', this needs '{scope}': ask for such a token"
            )
        return token

    def _known(self) -> dict[str, Token]:
        if self.clock() - self._read_at > READ_AGAIN_S:
            try:
                self._tokens = {token.id: token for token in read_tokens(self.url)}
            except (CasebookError, ValueError):
                self._tokens = {}  # without the file nobody comes in
            self._read_at = self.clock()
        return self._tokens


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _sign(token: Token, claim: str) -> str:
    return hmac.new(token.sha256.encode(), claim.encode(), "sha256").hexdigest()
