"""How a server is set up: one frozen value, from the command line, a Serve config file, or a RayService manifest."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and one holder of a token, may cost."""

    upload_bytes: int = 256 * 2**20  # of a request's body
    pixel_bytes: int = 512 * 2**20  # that an upload may take once it is decoded, and a region once it is read
    seconds: float = 120.0  # until an answer is given up
    body_seconds: float = 60.0  # until all of a request must have arrived
    requests_per_second: float = 50.0  # per token and front replica; 0 limits nothing
    burst: int = 200
    jobs: int = 4  # unfinished whole-case jobs per holder


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Who computes: replicas between least and most, as many as the load asks for."""

    fewest: int = 1
    most: int = 2
    ongoing_target: float = 4.0  # requests a replica should have in hand; more of them start another one
    cpus: float = 1.0  # each
    gpus: float = 0.0  # each; a fraction shares a GPU
    models_each: int = 3  # loaded at once; the longest unused gives way
    batch_size: int = 1  # pictures that are predicted together; on a CPU 1 is fastest, on a GPU try 8
    batch_wait_ms: float = 5.0  # that the first of a batch waits for others
    tile_batch: int = 8  # tiles that go through the net at once
    fronts: int = 1  # replicas that speak HTTP and compute nothing
    front_cpus: float = 0.25
    cache_folder: str | None = None  # for objects of cases in a store, which must not be changed in place then
    cache_gib: float = 10.0  # that the folder may take, on each machine


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a server needs to know.

    Raises:
        ValueError: a name that is no setting.
    """

    models: str = "rayters-runs/models"  # URL of the registry
    cohorts: tuple[str, ...] = ()  # URLs of the cohorts whose cases may be predicted and looked at
    storage: str = "rayters-runs/serving"  # where jobs keep their books; a folder or an s3:// URL
    tokens: str = "rayters-runs/tokens.json"  # who may ask, see jobs/tokens.py; a file or an s3:// URL
    origins: tuple[str, ...] = ()  # other sites whose pages may call this server (CORS); none by default
    secure_cookies: bool = False  # True behind TLS: the page's session is then never sent in the clear
    limits: Limits = field(default_factory=Limits)
    replicas: Replicas = field(default_factory=Replicas)


def from_json(document: dict[str, Any]) -> Settings:
    """Settings from the `args` of a Serve config file; what is not named keeps its default.

    Raises:
        ValueError: a name that is no setting; the message lists those that are.
    """
    parts = {"limits": Limits, "replicas": Replicas}
    values = dict(document)
    for name, part in parts.items():
        values[name] = _checked(part, values.get(name, {}))
    for name in ("cohorts", "origins"):
        values[name] = tuple(values.get(name, ()))
    made: Settings = _checked(Settings, values)
    return made


def _checked(kind: Any, values: dict[str, Any]) -> Any:
    known = [f.name for f in fields(kind)]
    if strange := sorted(set(values) - set(known)):
        raise ValueError(f"{', '.join(strange)} is no setting of {kind.__name__}: known are {', '.join(known)}")
    return kind(**values)
