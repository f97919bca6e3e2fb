"""Predictions: of a file that somebody sends, and of a region of a case."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from rayters.serving.app import AtDesk, Desk, ModelName, Predictor, problems
from rayters.serving.refusal import RefusedError
from rayters.serving.schemas import RegionRequest
from rayters.serving.upload import recognise
from rayters.serving.work import Answer, CaseRegion, Format, Kind, Upload, Want, Work

router = APIRouter(prefix="/v1/predict", tags=["predict"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The map. Labels are class numbers, uncertainty in a PNG is 0 .. 255 for 0 .. 1, the posterior is (class, ...).",
        "content": dict.fromkeys(("image/png", "application/gzip", "application/x-npy"), _BINARY),
        "headers": {"X-Rayters-Model": {"schema": {"type": "string"}, "description": "name@version that answered"}},
    }
}
_FILE = {
    "requestBody": {
        "required": True,
        "description": "A PNG, JPEG, TIFF, NIfTI (.nii, .nii.gz) or DICOM file, or a ZIP of one DICOM series; recognised by its content.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/{model}", responses={**ANSWERS, **problems(404, 415, 502, 503, 504)}, openapi_extra=_FILE, response_class=Response
)
async def predict_file(
    request: Request,
    model: ModelName,
    token: Predictor,
    desk: AtDesk,
    answer: Annotated[Kind, Query(description="which map")] = "labels",
    annotator: Annotated[
        str | None, Query(max_length=127, description="with answer=annotator: who would draw it")
    ] = None,
    format: Annotated[
        Format, Query(alias="as", description="auto: PNG if flat, NIfTI of volumes, else NumPy")
    ] = "auto",
) -> Response:
    """What a model makes of a picture or a volume: the most probable class, the posterior, the uncertainty, or what one of its
    annotators would draw."""
    want = _want(answer, annotator, format)
    card = await desk.models.card(model)
    data = await request.body()
    recognise(data)
    return _response(await _answer(desk, Work(model=card.id, source=Upload(data=data), want=want)), card.id)


@router.post("/{model}/region", responses={**ANSWERS, **problems(404, 502, 503, 504)}, response_class=Response)
async def predict_region(model: ModelName, body: RegionRequest, token: Predictor, desk: AtDesk) -> Response:
    """What a model makes of a box of a case, named as `cohort/case` or by its URL under a cohort that is served."""
    want = _want(body.answer, body.annotator, body.format)
    if (body.origin_px0 is None) != (body.size_px0 is None):
        raise RefusedError(422, "origin_px0 and size_px0 go together: give both, or neither for the whole case")
    card = await desk.models.card(model)
    case = await asyncio.to_thread(desk.places.case, body.case)
    region = CaseRegion(case=case, origin_px0=_tuple(body.origin_px0), size_px0=_tuple(body.size_px0))
    return _response(await _answer(desk, Work(model=card.id, source=region, want=want)), card.id)


def _want(answer: Kind, annotator: str | None, format: Format) -> Want:
    if (answer == "annotator") != (annotator is not None):
        raise RefusedError(422, "answer=annotator needs annotator=NAME, and only it does")
    return Want(answer=answer, annotator=annotator, format=format)


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


async def _answer(desk: Desk, work: Work) -> Answer:
    """Raises RefusedError: 504 when it takes too long."""
    try:
        async with asyncio.timeout(desk.settings.limits.seconds):
            return await desk.backend.answer(work)
    except TimeoutError:
        seconds = desk.settings.limits.seconds
        raise RefusedError(504, f"no answer within {seconds:g} s: send a smaller piece, or start a job") from None


def _response(answer: Answer, model: str) -> Response:
    headers = {"X-Rayters-Model": model, "Cache-Control": "no-store"}
    headers["Content-Disposition"] = f'attachment; filename="prediction.{answer.suffix}"'
    return Response(answer.body, media_type=answer.media_type, headers=headers)
