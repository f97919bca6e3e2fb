"""Training on a Ray cluster: the one file with ray.train. Workers share every batch; a lost one is replaced and goes on.

What lies under storage_path/name afterwards: checkpoint_*/ (each a model, see model.py), tensorboard/ (local paths only), and Ray
Train's own snapshot, by which the same name resumes.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray.train
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from casebook import Cohort, open_cohort
from rayters.patches.batches import local_batches
from rayters.patches.cache import Cache
from rayters.patches.plan import plan_epoch
from rayters.patches.resume import Position, batches_left
from rayters.training.device import Arrays
from rayters.training.local import VALIDATION, model_of
from rayters.training.loop import Epoch, Observer, Stream, fit, is_finished
from rayters.training.model import Model, load_model, load_state, save_model, save_state
from rayters.training.observers import Everyone, TensorBoard
from rayters.training.progress import MeterObserver, progress_bar
from rayters.training.run import Run, from_json, resolve, task_of, to_json
from rayters.training.salvage import salvage
from rayters.training.stream import CPUS_PER_READ, StreamConfig, open_stream, stream_batches
from rayters.training.team import Team
from rayters.training.tracking import Tracker, refuse_absent, trackers


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many workers train, and on what. Half a CPU each leaves room for the readers on a small machine."""

    workers: int = 2
    gpu: bool = False  # one GPU per worker
    cpus_per_worker: float = 0.5
    fewest: int = 0  # go on with so few workers while the others' machines are gone; 0: wait for all
    sharding: Literal["ddp", "fsdp"] = "ddp"  # every worker holds the whole net, or a part of it (FSDP2)
    max_failures: int = 3  # lost workers that are replaced before the run gives up
    pause_steps: int = 0  # a checkpoint every so many steps within an epoch, for epochs of hours; 0: after every epoch
    read_threads: int = 0  # 0: tasks anywhere in the cluster read; more: each worker, in so many threads
    cache_folder: str = ""  # on every worker's local disk, for an object store slower than it; (): no cache
    cache_gib: float = 20  # most that is kept in cache_folder, on each machine
    keep: int = 2  # checkpoints with the lowest validation loss; the newest is always kept

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.fewest <= self.workers or self.pause_steps < 0 or self.keep < 1:
            raise ValueError(f"a crew needs workers >= 1, 0 <= fewest <= workers, pause_steps >= 0, keep >= 1: {self}")
        if self.read_threads < 0 or self.cache_gib <= 0:
            raise ValueError(f"a crew needs read_threads >= 0 and cache_gib > 0: {self}")

    @property
    def sizes(self) -> range:
        """The numbers of workers that may train."""
        return range(self.fewest or self.workers, self.workers + 1)

    @property
    def cache(self) -> Cache | None:
        """Where objects of the store are kept, if anywhere."""
        return Cache(folder=self.cache_folder, max_bytes=int(self.cache_gib * 2**30)) if self.cache_folder else None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The model of a run, and the folder or URL where it lies."""

    folder: str
    model: Model


def train(
    run: Run, cohort: Cohort, *, storage_path: str, name: str, crew: Crew, track: Sequence[Tracker] = ()
) -> Trained:
    """Trains on the Ray that is initialised; a run of the same name and storage_path is resumed.

    track: experiment trackers that hear of it, beside TensorBoard.

    Raises:
        ValueError: when the run does not fit the cohort, the batch not the workers, another run already has this name, or a tracker
            is not installed.
        RuntimeError: when workers were lost more often than ``crew.max_failures``.
    """
    run = resolve(run, cohort)
    refuse_absent(track)
    for workers in crew.sizes:
        if run.batch_size % workers:
            raise ValueError(
                f"batch_size={run.batch_size} cannot be shared evenly by {workers} workers: use a multiple"
            )
    salvaged = salvage(f"{storage_path}/{name}")
    with progress_bar(f"{type(run.method).__name__:20}") as meter:
        config = {"name": name, "folder": f"{storage_path}/{name}", "salvaged": salvaged, "meter": meter}
        config |= {"run": json.dumps(to_json(run)), "cohort": cohort.url, "crew": crew, "track": tuple(track)}
        result = _trainer(run, cohort, config, storage_path=storage_path, name=name, crew=crew).fit()
    checkpoint = result.checkpoint or (Checkpoint(salvaged) if salvaged else None)
    if result.error or checkpoint is None:
        raise RuntimeError(f"run '{name}' ended without a model: {result.error}") from result.error
    scheme = storage_path.split("://")[0] + "://" if "://" in storage_path else ""
    with checkpoint.as_directory() as folder:
        return Trained(folder=scheme + checkpoint.path, model=load_model(folder))


def _trainer(
    run: Run, cohort: Cohort, config: dict[str, Any], *, storage_path: str, name: str, crew: Crew
) -> TorchTrainer:
    request = run.request(cohort.annotators)
    stream = open_stream(cohort.split("train"), request, run.sampling, seed=run.seed, cache=crew.cache)
    return TorchTrainer(
        _work,
        train_loop_config=config,
        datasets={"train": stream},
        dataset_config=StreamConfig(),
        scaling_config=ScalingConfig(
            num_workers=(crew.fewest, crew.workers) if crew.fewest else crew.workers,  # type: ignore[arg-type]  # Ray's own stub lags
            use_gpu=crew.gpu,
            resources_per_worker={"CPU": crew.cpus_per_worker, "GPU": int(crew.gpu)},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=crew.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=crew.keep, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
            ),
        ),
    )


def _work(config: Mapping[str, Any]) -> None:
    """What every worker runs."""
    run: Run = from_json(json.loads(config["run"]))
    cohort = open_cohort(config["cohort"])
    team = _team(config["crew"])
    state = _restore(run, config["salvaged"])
    if state and is_finished(state):
        return
    stream = _worker_stream(run, cohort, team, config["crew"])
    observer = _observer(run, cohort, stream, team, config)
    fit(run, task_of(run, cohort), stream, observer, team=team, state=state, pause_steps=config["crew"].pause_steps)


def _team(crew: Crew) -> Team:
    """This worker's place among the others."""
    context = ray.train.get_context()
    rank, size, device = context.get_world_rank(), context.get_world_size(), get_device()
    if crew.sharding == "fsdp" and size > 1:
        return Team(rank=rank, size=size, most=crew.workers, device=device, wrap=_shard, shards=True)
    return Team(rank=rank, size=size, most=crew.workers, device=device, wrap=prepare_model)


def _shard(net: nn.Module) -> nn.Module:
    """The net with its parameters cut up between the workers."""
    mesh = init_device_mesh(get_device().type, (ray.train.get_context().get_world_size(),))
    fully_shard(net, mesh=mesh)
    return net


def _restore(run: Run, salvaged: str | None) -> dict[str, Any] | None:
    """The state of the newest checkpoint, if this run has one: of those that Ray knows, or the one that was salvaged."""
    checkpoint = ray.train.get_checkpoint() or (Checkpoint(salvaged) if salvaged else None)
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        if load_model(folder).run != run:
            raise ValueError(
                "another run already has this name, and its checkpoints: choose another --name, or remove its folder"
            )
        return load_state(Path(folder))


def _worker_stream(run: Run, cohort: Cohort, team: Team, crew: Crew) -> Stream:
    request, shard = run.request(cohort.annotators), ray.train.get_dataset_shard("train")
    plan = plan_epoch(cohort.split("train"), request, run.sampling, seed=run.seed, epoch=0)
    share, threads = run.batch_size // team.size, _read_threads(crew, team)

    def training(at: Position) -> Iterable[Arrays]:
        return stream_batches(
            shard, batch_size=share, epoch=at.epoch, first_batch=at.first_batch, done=at.done, threads=threads
        )

    def validation() -> Iterable[Arrays]:
        split = cohort.split("validation")
        return local_batches(
            split,
            request,
            VALIDATION,
            batch_size=share,
            seed=0,
            epoch=0,
            rank=team.rank,
            world=team.size,
            threads=threads,
            cache=crew.cache,
        )

    left = partial(batches_left, plan, world=team.size, batch_size=share)
    return Stream(left=left, train=training, validation=validation)


def _read_threads(crew: Crew, team: Team) -> int:
    """Of this worker. Where the workers may have taken so much of every machine that no read fits beside them, tasks would wait for
    ever, so each worker reads for itself; the batches are the same."""
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    left = sum(node["Resources"]["CPU"] for node in machines) - team.size * crew.cpus_per_worker
    return crew.read_threads or (0 if left >= CPUS_PER_READ * len(machines) else 2)


def _observer(run: Run, cohort: Cohort, stream: Stream, team: Team, config: Mapping[str, Any]) -> Observer:
    reporter = Reporter(run, cohort, team)
    if not team.leads:
        return reporter
    watching: list[Observer] = [MeterObserver(config["meter"], steps=stream.steps, epochs=run.epochs), reporter]
    if "://" not in config["folder"]:
        watching.append(TensorBoard(Path(config["folder"]) / "tensorboard", steps=stream.steps))
    watching += trackers(config["track"], run, config["name"], steps=stream.steps)
    return Everyone(*watching)


class Reporter:
    """Tells Ray Train of every epoch and pause; the leader adds a checkpoint, which is uploaded while the training goes on."""

    def __init__(self, run: Run, cohort: Cohort, team: Team) -> None:
        self.run, self.cohort, self.team = run, cohort, team
        # the newest, which a pause repeats; before the first epoch a number that every loss beats and that Ray's JSON can hold: infinity
        # comes back as nothing, and a run whose driver was lost then would not resume
        self.measured: Mapping[str, float] = {"validation_loss": sys.float_info.max}

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing to tell."""

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Every worker must report."""
        self._report(net, self.measured, state)

    def on_epoch(self, epoch: Epoch) -> None:
        """Every worker must report."""
        self.measured = dict(epoch.measured) | {"epoch": epoch.epoch, "attempt": epoch.attempt}
        self._report(epoch.net, epoch.kept, epoch.state)

    def _report(self, net: nn.Module, kept: Mapping[str, float], state: Mapping[str, Any]) -> None:
        if not self.team.leads:
            ray.train.report(dict(self.measured))
            return
        folder = tempfile.mkdtemp(prefix="rayters-checkpoint-")
        save_model(Path(folder), model_of(self.run, self.cohort, net, kept))
        save_state(Path(folder), state)
        ray.train.report(
            dict(self.measured),
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
