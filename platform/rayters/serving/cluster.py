"""The Ray Serve application.

             HAProxy or Serve's proxy
                       |
    Front   (FastAPI; guards, routes, tries again)       little CPU, no model
                       |  name@version
    Models  (multiplexed, batched, autoscaled)           the GPU, or a fraction of it
                                                         jobs: one actor each, its books on the storage

A front asks the registry which version is promoted, and every request carries that version with it: a promotion changes what later
requests carry, and nothing for those under way. A replica that dies takes no answer with it: the front asks another one.
"""

import asyncio
import logging
import urllib.request
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.util.metrics import Counter, Histogram

from rayters.serving.refusal import RefusedError
from rayters.serving.registry import ModelError
from rayters.serving.routing import FewestInHand
from rayters.serving.segmenter import Loaded, Segmenter
from rayters.serving.settings import Settings, from_json
from rayters.serving.work import Answer, Work

APP = "rayters"
MODELS = "Models"
TRIES = 6


def application(args: dict[str, Any]) -> serve.Application:
    """The application that a Serve config file names; `args` are Settings as JSON.

    Raises:
        ValueError: a name that is no setting.
    """
    settings = from_json(args)
    replicas = settings.replicas
    front: Any = serve.deployment(
        serve.ingress(lambda: _front_app(settings))(),
        name="Front",
        num_replicas=replicas.fronts,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": replicas.front_cpus},
        health_check_period_s=5,
    )
    bound: serve.Application = front.bind(_models(settings).bind())
    return bound


def _models(settings: Settings) -> Any:
    """The deployment that holds the models."""
    replicas = settings.replicas

    class Models:
        """A replica: a few models, one prediction at a time."""

        def __init__(self) -> None:
            self.segmenter = Segmenter(settings, device=_device())
            self.one = asyncio.Lock()

        async def answer(self, work: Work) -> Answer | RefusedError:
            found: Answer | RefusedError = await self.batched(work)
            return found

        @serve.batch(max_batch_size=replicas.batch_size, batch_wait_timeout_s=replicas.batch_wait_ms / 1e3)
        async def batched(self, works: list[Work]) -> list[Answer | RefusedError]:
            """Those of one model go through it together."""
            answers: dict[int, Answer | RefusedError] = {}
            for model in dict.fromkeys(work.model for work in works):
                mine = [index for index, work in enumerate(works) if work.model == model]
                answers |= dict(zip(mine, await self.of_model(model, [works[i] for i in mine]), strict=True))
            return [answers[index] for index in range(len(works))]

        async def of_model(self, model: str, works: list[Work]) -> list[Answer | RefusedError]:
            try:
                loaded: Loaded = await self.loaded(model)
            except ModelError:
                return [
                    RefusedError(503, "the registry is damaged: this model's files are not what its card says")
                ] * len(works)
            async with self.one:  # two predictions at once would only share the device, and add up their memory
                return await asyncio.to_thread(self.segmenter.answer, loaded, works)

        @serve.multiplexed(max_num_models_per_replica=replicas.models_each)  # type: ignore[untyped-decorator]
        async def loaded(self, model: str) -> Loaded:
            return await asyncio.to_thread(self.segmenter.load, model)

    return serve.deployment(
        Models,
        name=MODELS,
        request_router_config=RequestRouterConfig(request_router_class=FewestInHand),  # type: ignore[arg-type]
        max_ongoing_requests=max(2 * replicas.batch_size, round(2 * replicas.ongoing_target)),
        autoscaling_config={
            "min_replicas": replicas.fewest,
            "initial_replicas": replicas.fewest,
            "max_replicas": replicas.most,
            "target_ongoing_requests": replicas.ongoing_target,
        },
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=settings.limits.seconds,
    )


def _device() -> str:
    import torch

    torch.set_num_threads(1)  # replicas are the parallelism
    return "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"


def _front_app(settings: Settings) -> Any:
    from rayters.serving.app import create_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its access log names whole paths; ours does not
    return create_app(settings, Cluster(settings))


class Cluster:
    """The backend of a front replica: Serve's handles, Ray's actors, Ray's metrics."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._handle: Any = None
        self.requests = Counter("rayters_requests", description="Requests served.", tag_keys=("route", "status"))
        self.seconds = Histogram(
            "rayters_request_seconds",
            description="From the first byte of a request to the last of its answer.",
            boundaries=[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120],
            tag_keys=("route",),
        )

    async def answer(self, work: Work) -> Answer:
        """Asks again when a replica dies with the question in its hands."""
        if self._handle is None:
            self._handle = serve.get_deployment_handle(MODELS, app_name=serve.get_replica_context().app_name)
        handle = self._handle.options(multiplexed_model_id=work.model)
        for attempt in range(TRIES):
            try:
                found = await handle.answer.remote(work)
                break
            except (RayActorError, DeploymentUnavailableError, BackPressureError):
                await asyncio.sleep(min(0.05 * 2**attempt, 1.0))
            except RayTaskError as error:
                if not isinstance(error.cause, RayActorError):
                    raise
                await asyncio.sleep(min(0.05 * 2**attempt, 1.0))
        else:
            raise RefusedError(503, "no replica answered: try again", retry_after_s=2)
        if isinstance(found, RefusedError):
            raise found
        answer: Answer = found
        return answer

    async def start(self, job: dict[str, Any]) -> None:
        cpus, gpus = self.settings.replicas.cpus, self.settings.replicas.gpus
        options = {
            "name": _actor(job["id"]),
            "namespace": APP,
            "lifetime": "detached",
            "num_cpus": cpus,
            "num_gpus": gpus,
        }
        actor: Any = JobActor
        actor.options(**options).remote(self.settings).run.remote(job)

    async def stop(self, id: str) -> None:
        try:
            ray.kill(ray.get_actor(_actor(id), namespace=APP))
        except ValueError:
            return

    async def alive(self, id: str) -> bool:
        try:
            ray.get_actor(_actor(id), namespace=APP)
        except ValueError:
            return False
        return True

    def count(self, route: str, status: int, seconds: float) -> None:
        self.requests.inc(tags={"route": route, "status": str(status)})
        self.seconds.observe(seconds, tags={"route": route})

    async def metrics(self) -> str:
        """What Ray's agents export of this application and of Serve, over all nodes."""
        return await asyncio.to_thread(_collected)


@ray.remote
class JobActor:
    """Holds the worker of one job, and is gone when the job has ended."""

    def __init__(self, settings: Settings) -> None:
        from rayters.serving.whole_case_worker import Worker

        self.worker = Worker(settings)

    def run(self, job: dict[str, Any]) -> None:
        try:
            self.worker.run(job, device=_device())
        finally:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]


def _collected() -> str:
    lines: list[str] = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        port = node.get("MetricsExportPort") if node.get("Alive") else None
        if port:
            with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            lines += [line for line in text.splitlines() if "ray_rayters_" in line or "ray_serve_" in line]
    return "\n".join(lines) + "\n"


def _actor(id: str) -> str:
    return f"job-{id}"


def start(settings: Settings, *, host: str, port: int) -> None:
    """Runs the application on the Ray that is initialised; returns when it is healthy."""
    serve.start(
        http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING", "enable_access_log": False}
    )
    serve.run(application(asdict(settings)), name=APP, route_prefix="/")


def stop() -> None:
    """Ends the application; jobs go on."""
    serve.shutdown()  # type: ignore[no-untyped-call]
