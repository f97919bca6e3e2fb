"""Who may use the server: make a token, list those that there are, take one back.

    python jobs/tokens.py issue --scope predict --days 30 --holder "lab 3"
    python jobs/tokens.py list
    python jobs/tokens.py revoke --id 0123abcd

A token is printed once and kept as a hash. The file may lie in a bucket: --file s3://bucket/tokens.json.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import tyro

from casebook import CasebookError
from rayters.reports.rows import Row, table, write_rows
from rayters.serving.tokens import issue, read_tokens, revoke

FILE = "rayters-runs/tokens.json"


@dataclass(frozen=True, kw_only=True)
class Issue:
    """Make a token."""

    scope: Literal["predict", "admin"] = "predict"  # admin also promotes models and cancels anybody's jobs
    days: float = 30  # that it lives
    holder: str = ""  # who has it; shown by list
    file: str = FILE


@dataclass(frozen=True, kw_only=True)
class List:
    """Every token's id, scope, last day and holder."""

    file: str = FILE
    json: str | None = None  # write a row for each token to this file; the value is the days that it has left


@dataclass(frozen=True, kw_only=True)
class Revoke:
    """Take a token back; servers notice within seconds."""

    id: str
    file: str = FILE


Job = (
    Annotated[Issue, tyro.conf.subcommand("issue")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Revoke, tyro.conf.subcommand("revoke")]
)


def main(job: Job) -> None:
    """Does one of the three."""
    if isinstance(job, Issue):
        print(issue(job.file, scope=job.scope, days=job.days, holder=job.holder))
    elif isinstance(job, Revoke):
        revoke(job.file, job.id)
        print(f"{job.id} is no longer valid")
    else:
        _list(job)


def _list(job: List) -> None:
    tokens, now = read_tokens(job.file), datetime.now(UTC)
    print(table(["token", "scope", "valid until", "holder"], [[t.id, t.scope, t.expires_on, t.holder] for t in tokens]))
    if job.json:
        left = [(datetime.fromisoformat(t.expires_on) - now) / timedelta(days=1) for t in tokens]
        rows = [Row(row=f"{t.id}, {t.scope}", value=days, unit="days") for t, days in zip(tokens, left, strict=True)]
        write_rows(rows, job.json)


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__))  # type: ignore[arg-type]
    except (CasebookError, ValueError) as error:
        sys.exit(f"error: {error}")
