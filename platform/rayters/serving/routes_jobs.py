"""Whole cases: start, look how far it is, cancel."""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path

from rayters.serving.app import AtDesk, Desk, Predictor, problems
from rayters.serving.refusal import RefusedError
from rayters.serving.schemas import Job, JobRequest
from rayters.serving.tokens import Token
from rayters.serving.whole_case import ENDED, Books, fresh, public

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", examples=["00112233445566aa"])]
STARTING_S = 120.0  # a job without a worker is given so long to get one


@router.post("", status_code=202, response_model=Job, responses=problems(404, 501, 502, 503))
async def start_job(body: JobRequest, token: Predictor, desk: AtDesk) -> dict[str, Any]:
    """Predicts a whole case, block by block, and writes layers named after the model beside the annotators' own."""
    card = await desk.models.card(body.model)
    cohort, row = await asyncio.to_thread(desk.places.find, body.case)
    books = Books(desk.settings.storage)
    unfinished = [j for j in await asyncio.to_thread(books.of, token.id) if j["state"] not in ENDED]
    if len(unfinished) >= desk.settings.limits.jobs:
        raise RefusedError(429, f"{len(unfinished)} of your jobs are unfinished: wait for one, or cancel one", 10)
    job = await asyncio.to_thread(lambda: books.open(model=card.id, cohort=cohort, name=row.case, holder=token.id))
    try:
        await desk.backend.start(job)
    except RefusedError as error:
        await asyncio.to_thread(partial(books.note, job["id"], state="failed", detail=error.detail))
        raise error from None
    return public(job)


@router.get("", response_model=list[Job], responses=problems(502))
async def list_jobs(token: Predictor, desk: AtDesk) -> list[dict[str, Any]]:
    """Your jobs, the newest first; with an admin token everybody's."""
    return [public(job) for job in await asyncio.to_thread(Books(desk.settings.storage).of, _whose(token))]


@router.get("/{id}", response_model=Job, responses=problems(404, 502))
async def show_job(id: JobId, token: Predictor, desk: AtDesk) -> dict[str, Any]:
    """How far a job is."""
    return public(await _seen(desk, id, token))


@router.delete("/{id}", response_model=Job, responses=problems(404, 502))
async def cancel_job(id: JobId, token: Predictor, desk: AtDesk) -> dict[str, Any]:
    """Ends a job; one that has ended stays as it ended. Blocks that were written are found again by a later job of the same model."""
    job = await _seen(desk, id, token)
    if job["state"] in ENDED:
        return public(job)
    noted = await asyncio.to_thread(lambda: Books(desk.settings.storage).note(id, state="cancelled"))
    await desk.backend.stop(id)
    return public(noted)


async def _seen(desk: Desk, id: str, token: Token) -> dict[str, Any]:
    """The books of a job; a worker that is gone without a word is noted as lost."""
    books = Books(desk.settings.storage)
    job = await asyncio.to_thread(lambda: books.read(id, holder=_whose(token)))
    if job["state"] in ENDED or fresh(job, STARTING_S) or await desk.backend.alive(id):
        return job
    return await asyncio.to_thread(lambda: books.note(id, state="lost", detail="its worker is gone: start it again"))


def _whose(token: Token) -> str | None:
    return None if token.scope == "admin" else token.id
