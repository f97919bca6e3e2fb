"""The web application: what may be asked, by whom, and what comes back. It knows no Ray; whoever computes is its backend."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from casebook import CasebookError
from rayters.serving.backend import Backend, Catalogue
from rayters.serving.guarded import Guarded
from rayters.serving.logs import configure
from rayters.serving.places import Places
from rayters.serving.rate import RateLimit
from rayters.serving.refusal import RefusedError
from rayters.serving.registry import Card, ModelError, promote
from rayters.serving.schemas import Health, ModelCard, Problem, Promotion
from rayters.serving.settings import Settings
from rayters.serving.tokens import Gate, Token

DESCRIPTION = """Segmentation by models that learnt from annotators who disagree: of a picture or volume that you send, of a region
of a case, or of whole cases. Every request but `/health` needs `Authorization: Bearer rayters_...`;
`python jobs/tokens.py issue` makes one."""
NAME = Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,126}(@[0-9a-f]{12})?$", examples=["digits"])
ModelName = Annotated[str, NAME]
WHY = {
    400: "a request that cannot be understood", 401: "no, a wrong or an expired token", 403: "the token's scope is not enough",
    404: "no such model, case or job", 408: "the request came too slowly", 413: "too large", 415: "an unknown kind of file",
    422: "well-formed, but it cannot be done", 429: "too many requests", 501: "not without Ray", 502: "a store did not answer",
    503: "busy, or a damaged model", 504: "it took too long",
}  # fmt: skip
COOKIE = "rayters"
_SCHEME = HTTPBearer(auto_error=False, description="rayters_..., as jobs/tokens.py issue printed it")


class Desk:
    """What the routes share."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.settings, self.backend = settings, backend
        self.gate, self.places = Gate(settings.tokens), Places(settings.cohorts)
        self.models = Catalogue(settings.models)
        self.rate = RateLimit(per_second=settings.limits.requests_per_second, burst=settings.limits.burst)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for its documentation; the guard's own are always among them."""
    always = (401, 403, 408, 413, 422, 429)
    return {status: {"model": Problem, "description": WHY[status]} for status in sorted({*always, *statuses})}


async def may_predict(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]
) -> Token:
    """A holder with scope predict."""
    return _admitted(request, "predict")


async def may_look(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]) -> Token:
    """A holder with scope predict, by header or by the page's session, which may do nothing but look."""
    cookie = request.cookies.get(COOKIE)
    if not cookie or request.headers.get("authorization"):
        return _admitted(request, "predict")
    token = desk_of(request).gate.check_session(cookie)
    request.state.holder = token.id
    return token


async def may_administer(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]
) -> Token:
    """A holder with scope admin."""
    return _admitted(request, "admin")


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _admitted(request: Request, scope: str) -> Token:
    desk = desk_of(request)
    token = desk.gate.check(request.headers.get("authorization"), scope)
    request.state.holder = token.id
    desk.rate.take(token.id)
    return token


Predictor = Annotated[Token, Depends(may_predict)]
Administrator = Annotated[Token, Depends(may_administer)]
Looker = Annotated[Token, Depends(may_look)]


AtDesk = Annotated[Desk, Depends(desk_of)]


def create_app(settings: Settings, backend: Backend) -> FastAPI:
    """The application with all its routes."""
    from rayters.serving.routes_jobs import router as jobs
    from rayters.serving.routes_page import router as page
    from rayters.serving.routes_predict import router as predict

    configure()
    app = FastAPI(title="Rayters", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.desk = Desk(settings, backend)
    for router in (models, predict, jobs, page):
        app.include_router(router)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(Guarded, limits=settings.limits, count=backend.count)
    for kind, handler in ((RefusedError, _refused), (RequestValidationError, _invalid), (HTTPException, _http)):
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(CasebookError, _store)
    return app


models = APIRouter()


@models.get("/health", response_model=Health, tags=["server"])
async def health() -> Health:
    """That the server answers; needs no token."""
    return Health(status="ok")


@models.get(
    "/metrics",
    tags=["server"],
    responses={**problems(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(token: Predictor, desk: AtDesk) -> Response:
    """What Prometheus scrapes (with a token of scope predict)."""
    return Response(await desk.backend.metrics(), media_type="text/plain; version=0.0.4")


@models.get("/v1/models", response_model=list[ModelCard], responses=problems(503), tags=["models"])
async def list_models(token: Looker, desk: AtDesk) -> list[dict[str, Any]]:
    """The promoted version of every model."""
    return [shown(card) for card in await desk.models.cards()]


@models.get("/v1/models/{model}", response_model=ModelCard, responses=problems(404, 503), tags=["models"])
async def show_model(model: ModelName, token: Predictor, desk: AtDesk) -> dict[str, Any]:
    """One model: `name` is its promoted version, `name@version` that very one."""
    return shown(await desk.models.card(model))


@models.post("/v1/models/{model}/promote", response_model=ModelCard, responses=problems(404), tags=["models"])
async def promote_model(model: ModelName, body: Promotion, token: Administrator, desk: AtDesk) -> dict[str, Any]:
    """Serves another version from now on; requests that are under way are answered by the version that they began with."""
    try:
        card = await asyncio.to_thread(promote, desk.settings.models, model.partition("@")[0], body.version)
    except ModelError as error:
        raise RefusedError(404, "no such version, or its files are not what its card says: publish it again") from error
    return shown(card)


def shown(card: Card) -> dict[str, Any]:
    """A card without the checksums of its files."""
    return {key: value for key, value in asdict(card).items() if key != "files"} | {"id": card.id}


def _problem(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    document = {"detail": detail, "request": getattr(request.state, "request", "-")}
    return JSONResponse(document, status_code=status, headers=headers)


async def _refused(request: Request, error: Any) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return _problem(request, error.status, error.detail, headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """Where and why, without what was sent."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _problem(request, 422, f"{where}: {first['msg']}"[:300])


async def _http(request: Request, error: Any) -> JSONResponse:
    return _problem(request, error.status_code, str(error.detail), dict(error.headers or {}))


async def _store(request: Request, error: Any) -> JSONResponse:
    return _problem(request, 502, "a store of this server did not answer: try again, or tell who runs it")


Limit = Annotated[int, Query(ge=1, le=500)]
