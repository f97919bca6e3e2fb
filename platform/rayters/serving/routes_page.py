"""The page, and what it looks at: cohorts, cases, pixels. A session cookie, made from a token, may look; it may nothing else."""

import asyncio
import json
from functools import lru_cache
from importlib.resources import files
from math import prod
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from casebook import Case
from casebook.location import relative_to
from rayters.serving.app import COOKIE, AtDesk, Desk, Limit, Looker, problems
from rayters.serving.derived import derived
from rayters.serving.gallery import Glance, confusions, glance
from rayters.serving.guarded import VIEWER_POLICY
from rayters.serving.refusal import RefusedError
from rayters.serving.schemas import CasePage, CohortEntry, Confusions, Json
from rayters.serving.stored import read_piece
from rayters.serving.tokens import SESSION_S
from rayters.serving.view_state import Panels, extras, view_state

router = APIRouter()
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".wasm": "application/wasm"}
MOST_COUNTED = 40  # cases that confusions are counted over


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return _own("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_part(name: str) -> Response:
    return _own(name)


@router.post("/session", include_in_schema=False)
async def open_session(request: Request, desk: AtDesk) -> Response:
    """A cookie for a token. The body is JSON, which no form of another site can send."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise RefusedError(415, 'JSON was expected: {"token": "rayters_..."}')
    try:
        document = json.loads(await request.body())
        secret = str(document["token"])
    except (ValueError, KeyError, TypeError):
        raise RefusedError(422, 'JSON was expected: {"token": "rayters_..."}') from None
    token = desk.gate.check(f"Bearer {secret}", "predict")
    answer = Response(status_code=204)
    secure = desk.settings.secure_cookies
    answer.set_cookie(
        COOKIE, desk.gate.session(token), max_age=SESSION_S, httponly=True, samesite="strict", secure=secure
    )
    return answer


@router.post("/session/end", include_in_schema=False)
async def end_session() -> Response:
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/v1/cohorts", response_model=list[CohortEntry], responses=problems(502), tags=["cases"])
async def list_cohorts(token: Looker, desk: AtDesk) -> list[Json]:
    """The cohorts that are served."""
    return await asyncio.to_thread(lambda: [_cohort(desk, name) for name in desk.places.roots])


@router.get("/v1/cohorts/{cohort}/cases", response_model=CasePage, responses=problems(404, 502), tags=["cases"])
async def list_cases(
    cohort: str, token: Looker, desk: AtDesk, offset: Annotated[int, Query(ge=0, le=10**9)] = 0, limit: Limit = 24
) -> Json:
    """Cases with the agreement of their annotators."""
    rows = (await asyncio.to_thread(desk.places.cohort, cohort)).cases
    some = rows[offset : offset + limit]
    entries = await asyncio.to_thread(lambda: [_entry(desk, cohort, row) for row in some])
    return {"total": len(rows), "cases": entries}


@router.get(
    "/v1/cohorts/{cohort}/cases/{case}/thumbnail.png",
    responses={
        **problems(404, 502),
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    },
    response_class=Response,
    tags=["cases"],
)
async def thumbnail(cohort: str, case: str, token: Looker, desk: AtDesk) -> Response:
    """A small picture of a case; the consensus is outlined."""
    seen = await asyncio.to_thread(_glance, desk, cohort, case)
    return Response(seen.thumbnail, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})


@router.get("/v1/cohorts/{cohort}/confusions", response_model=Confusions, responses=problems(404, 502), tags=["cases"])
async def show_confusions(cohort: str, token: Looker, desk: AtDesk) -> Json:
    """Who writes what where the consensus of all says something else, counted over the first cases."""
    return await asyncio.to_thread(_confusions, desk, cohort)


@router.get("/page/view/{cohort}/{case}", include_in_schema=False)
async def view(cohort: str, case: str, token: Looker, desk: AtDesk, panels: Panels = "one") -> Json:
    """The viewer's state for a case."""
    return await asyncio.to_thread(_view, desk, cohort, case, panels)


@router.api_route("/data/{cohort}/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
async def stored_bytes(request: Request, cohort: str, path: str, token: Looker, desk: AtDesk) -> Response:
    """Bytes of a case."""
    wanted, head = request.headers.get("range"), request.method == "HEAD"
    piece = await asyncio.to_thread(lambda: read_piece(desk.places, cohort, path, wanted, head=head))
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=60"}
    if wanted and not head:
        headers["Content-Range"] = f"bytes {piece.first}-{piece.first + len(piece.data) - 1}/{piece.size}"
    if head:
        headers["Content-Length"] = str(piece.size)
    status = 206 if wanted and not head else 200
    return Response(piece.data, status_code=status, media_type="application/octet-stream", headers=headers)


@router.get("/derived/{cohort}/{case}/{kind}/{path:path}", include_in_schema=False)
async def derived_bytes(cohort: str, case: str, kind: str, path: str, token: Looker, desk: AtDesk) -> Response:
    """Bytes of a layer that is computed where somebody looks."""
    found = await asyncio.to_thread(lambda: derived(_case(desk, cohort, case), kind, path))
    if found is None:
        raise RefusedError(404, "there is no such part of this layer")
    return Response(found, media_type="application/octet-stream", headers={"Cache-Control": "private, max-age=60"})


@router.get("/viewer/v/local/{name:path}", include_in_schema=False)
async def viewer_client(name: str) -> Response:
    """neuroglancer's own web client, from its package; our script before it keeps its state in the browser."""
    return _client_part(name or "index.html")


@lru_cache(maxsize=64)
def _client_part(name: str) -> Response:
    from neuroglancer import static

    try:
        content, kind = static.get_default_static_content_source().get(name, "")
    except ValueError:
        raise RefusedError(404, "the viewer has no such part") from None
    if name == "index.html":
        content = content.replace(b"<head>", b'<head><script src="/page/local.js"></script>')
    headers = {"Cache-Control": "public, max-age=3600", "Content-Security-Policy": VIEWER_POLICY}
    return Response(content, media_type=kind, headers=headers)


def _own(name: str) -> Response:
    """A part of our page."""
    suffix = "." + name.rpartition(".")[2]
    place = files("rayters.serving").joinpath("page", name)
    if "/" in name or suffix not in KINDS or not place.is_file():
        raise RefusedError(404, "there is no such page: the first one is at /")
    return Response(place.read_bytes(), media_type=KINDS[suffix], headers={"Cache-Control": "no-cache"})


def _case(desk: Desk, cohort: str, case: str) -> Case:
    if cohort not in desk.places.roots:
        raise RefusedError(404, "no such cohort")
    return desk.places.case(f"{cohort}/{case}")


def _glance(desk: Desk, cohort: str, case: str) -> Glance:
    return glance(_case(desk, cohort, case))


def _cohort(desk: Desk, name: str) -> Json:
    cohort = desk.places.cohort(name)
    return {
        "name": name, "title": cohort.name, "classes": cohort.classes, "annotators": cohort.annotators,
        "reference": cohort.reference, "licence": cohort.licence, "cases": len(cohort.cases),
    }  # fmt: skip


def _entry(desk: Desk, cohort: str, row: Any) -> Json:
    names = ("case", "split", "axes", "shape", "spacing_um", "annotators")
    return {name: getattr(row, name) for name in names} | {"agreement": _glance(desk, cohort, row.case).agreement}


def _confusions(desk: Desk, name: str) -> Json:
    cohort = desk.places.cohort(name)
    total = np.zeros((len(cohort.annotators), len(cohort.classes), len(cohort.classes)), np.int64)
    some = cohort.cases[:MOST_COUNTED]
    for row in some:
        case = _case(desk, name, row.case)
        for who, counts in zip(case.annotators, glance(case).counts, strict=True):
            total[cohort.annotators.index(who)] += counts
    return {
        "classes": cohort.classes, "annotators": cohort.annotators, "against": "the consensus (majority vote)",
        "cases": len(some), "matrices": confusions(total),
    }  # fmt: skip


def _view(desk: Desk, cohort: str, name: str, panels: Panels) -> Json:
    case = _case(desk, cohort, name)
    root = desk.places.roots[cohort]
    path = f"/data/{cohort}/{relative_to(case.url, root)}/"
    state = view_state(cohort, name, path, case, extras(cohort, root, case, name), panels, glance(case).window)
    return {"state": state, "pixels": prod(case.shapes[0])}
