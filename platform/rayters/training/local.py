"""Training without a cluster: the same loop on the same batches, in this process. For tests, notebooks and small studies."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn
from tqdm import tqdm

from casebook import Cohort
from rayters.patches.batches import local_batches
from rayters.patches.plan import plan_epoch
from rayters.patches.resume import batches_left
from rayters.patches.sampling import Sampling
from rayters.training.loop import Stream, fit
from rayters.training.model import Model, save_model
from rayters.training.observers import Bar, Everyone, TensorBoard
from rayters.training.run import Run, resolve, task_of
from rayters.training.team import Team

VALIDATION = Sampling(patches_per_epoch=None, balance="uniform")  # every pixel once


def train_locally(run: Run, cohort: Cohort, folder: Path) -> Model:
    """Trains in this process and leaves the model and TensorBoard's files in ``folder``.

    Raises:
        ValueError: when the run does not fit the cohort, see ``resolve``.
    """
    run = resolve(run, cohort)
    task, team = task_of(run, cohort), Team()
    stream = local_stream(run, cohort)
    folder.mkdir(parents=True, exist_ok=True)
    title = type(run.method).__name__
    observer = Everyone(
        Bar(tqdm, title=title, steps=stream.steps, epochs=run.epochs),
        TensorBoard(folder / "tensorboard", steps=stream.steps),
    )
    last = fit(run, task, stream, observer, team=team)
    model = model_of(run, cohort, last.net, last.kept)
    save_model(folder, model)
    return model


def local_stream(run: Run, cohort: Cohort) -> Stream:
    """Batches read in this process, in the order in which one Ray worker would get them."""
    request, train = run.request(cohort.annotators), cohort.split("train")
    plan = plan_epoch(train, request, run.sampling, seed=run.seed, epoch=0)
    return Stream(
        left=partial(batches_left, plan, world=1, batch_size=run.batch_size),
        train=lambda at: local_batches(
            train,
            request,
            run.sampling,
            batch_size=run.batch_size,
            seed=run.seed,
            epoch=at.epoch,
            first_batch=at.first_batch,
            done=at.done,
        ),
        validation=lambda: local_batches(
            cohort.split("validation"), request, VALIDATION, batch_size=run.batch_size, seed=0, epoch=0
        ),
    )


def model_of(run: Run, cohort: Cohort, net: nn.Module, measured: Mapping[str, float]) -> Model:
    """The model that a training leaves, or has got so far."""
    return Model(
        run=run,
        task=task_of(run, cohort),
        classes=cohort.classes,
        annotators=cohort.annotators,
        measured=measured,
        net=net,
    )
