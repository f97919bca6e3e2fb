"""A client in a few lines.

>>> client = Client("http://127.0.0.1:8000", "rayters_...")                          # doctest: +SKIP
>>> client.predict("digits", Path("sheet.png").read_bytes()).pixels.shape            # doctest: +SKIP
(64, 64)

It tries again what may be tried again: a server that is busy, a front replica that went away. Predictions change nothing on the
server, so asking twice is asking once.
"""

import gzip
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from rayters.serving.work import Format, Kind

TRIES = 8


class ServerError(RuntimeError):
    """The server refused; the message is its own, and says what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """pixels: (*S) uint8 labels, (*S) or (K, *S) float32 (uint8 0 .. 255 when a fraction was asked for as PNG). model: 'name@version'."""

    pixels: NDArray[Any]
    model: str


class Client:
    """One server, one token."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 180.0) -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        headers = {"Authorization": f"Bearer {token}"}
        self.session = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, limits=limits)

    def models(self) -> list[dict[str, Any]]:
        """The promoted models."""
        found: list[dict[str, Any]] = self._ask(lambda: self.session.get("/v1/models")).json()
        return found

    def predict(
        self, model: str, data: bytes, *, answer: Kind = "labels", annotator: str | None = None, format: Format = "auto"
    ) -> Predicted:
        """What a model makes of a file: PNG, JPEG, TIFF, NIfTI, DICOM, or a ZIP of one DICOM series.

        Raises:
            ServerError: the server refused, or was not there eight times in a row.
        """
        asked = {"answer": answer, "annotator": annotator, "as": format}
        params = {key: value for key, value in asked.items() if value is not None}
        return _decoded(self._ask(lambda: self.session.post(f"/v1/predict/{model}", content=data, params=params)))

    def region(
        self,
        model: str,
        case: str,
        *,
        origin_px0: tuple[int, ...] | None = None,
        size_px0: tuple[int, ...] | None = None,
        answer: Kind = "labels",
        annotator: str | None = None,
    ) -> Predicted:
        """What a model makes of a box of a case, 'cohort/case', level-0 pixels; of all of it without a box.

        Raises:
            ServerError: as for ``predict``.
        """
        box = {"origin_px0": origin_px0 and list(origin_px0), "size_px0": size_px0 and list(size_px0)}
        body = {"case": case, "answer": answer, "annotator": annotator, **box}
        return _decoded(self._ask(lambda: self.session.post(f"/v1/predict/{model}/region", json=body)))

    def predict_case(self, model: str, case: str) -> dict[str, Any]:
        """Starts the prediction of a whole case; ``job`` says how far it is."""
        job: dict[str, Any] = self._ask(
            lambda: self.session.post("/v1/jobs", json={"model": model, "case": case})
        ).json()
        return job

    def job(self, id: str) -> dict[str, Any]:
        """How far a job is: state, done and total blocks."""
        job: dict[str, Any] = self._ask(lambda: self.session.get(f"/v1/jobs/{id}")).json()
        return job

    def cancel(self, id: str) -> dict[str, Any]:
        """Ends a job."""
        job: dict[str, Any] = self._ask(lambda: self.session.delete(f"/v1/jobs/{id}")).json()
        return job

    def _ask(self, request: Callable[[], httpx.Response]) -> httpx.Response:
        problem = ""
        for attempt in range(TRIES):
            try:
                response = request()
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response
                problem = _said(response)
                if response.status_code not in (429, 500, 502, 503):
                    raise ServerError(problem)
            time.sleep(min(0.1 * 2**attempt, 3.0))
        raise ServerError(f"{problem} (tried {TRIES} times)")


def _said(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.reason_phrase}"


def _decoded(response: httpx.Response) -> Predicted:
    kind, data = response.headers["content-type"], response.content
    if kind == "image/png":
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(data)))
    elif kind == "application/x-npy":
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        import nibabel

        image: Any = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        pixels = np.asarray(image.dataobj).T
    return Predicted(pixels=pixels, model=response.headers["x-rayters-model"])
