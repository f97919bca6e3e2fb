"""The documents that go in and out, as OpenAPI shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rayters.serving.work import Format, Kind

Whole = Annotated[int, Field(ge=0, le=2**40)]
Side = Annotated[int, Field(ge=1, le=2**24)]


class Strict(BaseModel):
    """A field that is not known is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """Why a request was not served, and what to do."""

    detail: str = Field(examples=["no token: send the header 'Authorization: Bearer rayters_...'"])
    request: str = Field(examples=["5f0c9a1b2c3d"], description="the id of the request in the server's log")


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"]


class ModelCard(BaseModel):
    """A promoted model. confusions[a][i][j] is P(annotator a writes class i | truth j)."""

    id: str = Field(examples=["digits@0123456789ab"])
    name: str
    version: str
    classes: list[str]
    annotators: list[str]
    axes: int
    channels: int
    method: str
    gaze: str
    measured: dict[str, float]
    spacing_um: list[float] | None
    confusions: list[list[list[float | None]]] | None
    intended_use: str
    trained_on: str
    licence: str
    published_on: str


class Promotion(Strict):
    """Which version shall be served from now on."""

    version: str = Field(pattern=r"^[0-9a-f]{12}$", examples=["0123456789ab"])


class RegionRequest(Strict):
    """A box of a case, level-0 pixels, (y, x) or (z, y, x); without origin and size the whole case."""

    case: str = Field(min_length=1, max_length=2048, examples=["demo-cohort/sheet-27"])
    origin_px0: list[Whole] | None = Field(default=None, min_length=2, max_length=3, examples=[[0, 0]])
    size_px0: list[Side] | None = Field(default=None, min_length=2, max_length=3, examples=[[64, 64]])
    answer: Kind = "labels"
    annotator: str | None = Field(default=None, max_length=127, examples=[None])
    format: Format = Field(default="auto", alias="as")


class JobRequest(Strict):
    """A whole case to predict."""

    model: str = Field(min_length=1, max_length=200, examples=["digits"])
    case: str = Field(min_length=1, max_length=2048, examples=["demo-cohort/sheet-27"])


class Job(BaseModel):
    """A whole-case prediction. done and total count blocks."""

    id: str = Field(examples=["00112233445566aa"])
    model: str
    case: str
    state: Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
    done: int
    total: int
    detail: str
    started_on: str
    ended_on: str | None


class CohortEntry(BaseModel):
    """A cohort that is served."""

    name: str
    title: str
    classes: list[str]
    annotators: list[str]
    reference: str | None
    licence: str | None
    cases: int


class CaseEntry(BaseModel):
    """A case of a cohort. agreement: mean pairwise Dice of its annotators; None where there are not two."""

    case: str
    split: str
    axes: list[str]
    shape: list[int]
    spacing_um: list[float]
    annotators: list[str]
    agreement: float | None


class CasePage(BaseModel):
    """Some cases of a cohort."""

    total: int
    cases: list[CaseEntry]


class Confusions(BaseModel):
    """Who writes what: matrices[a][i][j] = P(annotator a writes i | j), counted against their consensus, over the cases that were
    looked at."""

    classes: list[str]
    annotators: list[str]
    against: str
    cases: int
    matrices: list[list[list[float | None]]]


Json = dict[str, Any]
