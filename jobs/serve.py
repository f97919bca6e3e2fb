"""Serve models over HTTP, with a page to look at cases, annotators and predictions.

    python jobs/serve.py                                                        models of rayters-runs/models, on http://127.0.0.1:8000
    python jobs/serve.py --cohort rayters-runs/demo-cohort --models rayters-runs/models
    python jobs/serve.py --cohort s3://bucket/slides --models s3://bucket/models --host 0.0.0.0 --gpus 0.5 --batch-size 8
    serve deploy jobs/serve.yaml                                                on a cluster that runs already

Publish a model first (jobs/publish.py). At the first start a token is made and printed once; jobs/tokens.py makes more. Ctrl-C ends the
server. Serve speaks plain HTTP: beyond this machine, put a proxy with TLS before it.
"""

import dataclasses
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from casebook import CasebookError
from rayters.serving.places import Places
from rayters.serving.refusal import RefusedError
from rayters.serving.registry import ModelError, current, names
from rayters.serving.settings import Limits, Replicas, Settings
from rayters.serving.switches import set_switches
from rayters.serving.tokens import issue, read_tokens


@dataclass(frozen=True, kw_only=True)
class Job:
    """Serve models, cases and a page."""

    cohort: tuple[str, ...] = ()  # URLs of cohorts whose cases may be predicted and looked at
    models: str = Settings.models  # URL of the registry, see jobs/publish.py
    storage: str = Settings.storage  # where jobs keep their books; a folder or an s3:// URL
    tokens: str = Settings.tokens  # who may ask; a file or an s3:// URL
    host: str = "127.0.0.1"  # 0.0.0.0 serves other machines too
    port: int = 8000
    origins: tuple[str, ...] = ()  # other sites whose pages may call this server (CORS)
    secure_cookies: bool = False  # behind TLS: the page's session is never sent in the clear
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    replicas: Annotated[Replicas, tyro.conf.arg(name="")] = field(default_factory=Replicas)


def main(job: Job) -> None:
    """Serves until it is told to stop."""
    settings = _settings(job)
    _check(settings)
    set_switches()
    from rayters.serving import cluster  # imports Serve, which reads the switches
    from rayters.training.connect import connected

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    stopped = threading.Event()
    with connected():
        try:
            cluster.start(settings, host=job.host, port=job.port)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            _tell(job, settings)
            stopped.wait()
        finally:
            cluster.stop()


def _settings(job: Job) -> Settings:
    shared = {f.name: getattr(job, f.name) for f in dataclasses.fields(Settings) if hasattr(job, f.name)}
    places = {name: _absolute(shared[name]) for name in ("models", "storage", "tokens")}
    return Settings(**(shared | places), cohorts=tuple(_absolute(url) for url in job.cohort))


def _absolute(url: str) -> str:
    """Replicas run in other folders."""
    return url if "://" in url else os.path.abspath(url)


def _check(settings: Settings) -> None:
    """What would fail at the first request fails now.

    Raises:
        ValueError, CasebookError: no model, a damaged one, or a cohort that cannot be opened.
    """
    served = [current(settings.models, name) for name in names(settings.models)]
    if not served and not settings.cohorts:
        raise ModelError(f"{settings.models} has no promoted model: python jobs/publish.py publish --help")
    places = Places(settings.cohorts)
    for name in places.roots:
        try:
            places.cohort(name)
        except RefusedError as error:
            raise ValueError(f"{places.roots[name]} cannot be served: {error.detail}") from error
    for card in served:
        print(f"model    {card.id}  {card.method}, classes {', '.join(card.classes)}")
    for name, url in places.roots.items():
        print(f"cohort   {name}  {url}")


def _tell(job: Job, settings: Settings) -> None:
    """Where it is, and, if nobody has a token yet, one."""
    print(f"page     http://{job.host}:{job.port}/\nAPI      http://{job.host}:{job.port}/openapi.json", flush=True)
    if not read_tokens(settings.tokens):
        secret = issue(settings.tokens, scope="admin", days=90, holder="first start")
        print(f"token    {secret}   (admin, 90 days; it is shown only now)", flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
