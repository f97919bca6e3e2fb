"""The books of whole-case jobs: one JSON document each on the server's storage, so that any front replica can answer for any job.

waiting -> running -> done | failed
                  \\-> cancelled              a job whose worker is gone while its books say running is 'lost'; start it again and
                                             it goes on where it stopped
"""

import json
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from casebook import CaseNotFoundError
from casebook.conditional import create_bytes, replace_json
from casebook.location import canonical, join, last_name, list_names, read_json
from rayters.serving.refusal import RefusedError

ENDED = ("done", "failed", "cancelled", "lost")
_NO_SUCH = "no such job: ask GET /v1/jobs for yours"


class Books:
    """Every job of a server."""

    def __init__(self, storage: str) -> None:
        self.folder = join(canonical(storage), "jobs")

    def open(self, *, model: str, cohort: str, name: str, holder: str) -> dict[str, Any]:
        """A new job, waiting. cohort: its URL; name: of the case in it."""
        job = {
            "id": secrets.token_hex(8), "model": model, "case": f"{last_name(cohort)}/{name}", "cohort": cohort, "name": name,
            "holder": holder, "state": "waiting",
            "done": 0, "total": 0, "detail": "", "started_on": _now(), "ended_on": None,
        }  # fmt: skip
        create_bytes(self._place(str(job["id"])), json.dumps(job).encode())
        return job

    def read(self, id: str, *, holder: str | None) -> dict[str, Any]:
        """holder: only this one's; None reads anybody's.

        Raises:
            RefusedError: 404, also for a job of somebody else.
        """
        if not (len(id) == 16 and set(id) <= set("0123456789abcdef")):
            raise RefusedError(404, _NO_SUCH)
        try:
            job = read_json(self._place(id))
        except CaseNotFoundError:
            raise RefusedError(404, _NO_SUCH) from None
        if holder is not None and job["holder"] != holder:
            raise RefusedError(404, _NO_SUCH)
        return job

    def of(self, holder: str | None) -> list[dict[str, Any]]:
        """The newest first."""
        jobs = (read_json(join(self.folder, name)) for name in list_names(self.folder) if name.endswith(".json"))
        mine = [job for job in jobs if holder is None or job["holder"] == holder]
        return sorted(mine, key=lambda job: str(job["started_on"]), reverse=True)

    def note(self, id: str, **changes: Any) -> dict[str, Any]:
        """Writes down what changed; a job that has ended stays as it ended."""

        def change(job: dict[str, Any]) -> dict[str, Any]:
            ends = changes.get("state") in ENDED
            return job if job["state"] in ENDED else job | changes | ({"ended_on": _now()} if ends else {})

        replace_json(self._place(id), change, absent={"state": "lost"})
        return read_json(self._place(id))

    def _place(self, id: str) -> str:
        return join(self.folder, f"{id}.json")


def public(job: dict[str, Any]) -> dict[str, Any]:
    """What the holder sees: no place on the server's disk."""
    return {key: value for key, value in job.items() if key not in ("cohort", "name", "holder")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fresh(job: dict[str, Any], seconds: float) -> bool:
    """Whether a job was started so recently that its worker may not be there yet."""
    return time.time() - datetime.fromisoformat(str(job["started_on"])).timestamp() < seconds
