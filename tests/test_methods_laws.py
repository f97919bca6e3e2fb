"""Laws that every method keeps, with every gaze, on pictures and volumes. A new method joins by being in ``methods.ALL``."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casebook import IGNORE
from rayters import gaze, methods
from rayters.gaze import FixedGaze, FoveationGaze, Gaze
from rayters.inference.predict import predict_picture
from rayters.methods import AnnotatorConfusion, CoTeaching, EffectiveSupervision, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.training.learner import Learner
from rayters.training.model import Model, load_model, save_model
from rayters.training.run import Run, from_json, to_json
from rayters.training.step import Batch, train_step
from rayters.training.team import Team

TASK = Task(channels=1, classes=3, annotators=3, patch_px=(8, 8))
METHODS = [kind() for kind in methods.ALL]
TWO = {"fields_of_view": (1.0, 2.0)}  # as telling as three, and quicker
GAZES = [kind(**TWO) if hasattr(kind, "fields_of_view") else kind() for kind in gaze.ALL]
CHOICES = [
    *(FoveationGaze(choose=choose, **TWO) for choose in ("mode", "gumbel", "reinforce")),
    FoveationGaze(choose="reinforce", own_weight=0.0, **TWO),
    FoveationGaze(blend="pixels", **TWO),
]
SEVERAL = [AnnotatorConfusion(), CoTeaching(), EffectiveSupervision()]  # the last two have two eyes
names = lambda value: type(value).__name__ + (f"-{value.choose}" if isinstance(value, FoveationGaze) else "")


def net_of(method: Method, look: Gaze | None = None, task: Task = TASK, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    look = look or FixedGaze()
    task = replace(task, view_scales=look.scales())
    return method.build(task, lambda: look.build(task, UNet(width=4)))


def views_of(look: Gaze | None = None, task: Task = TASK, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, len((look or FixedGaze()).scales()), 1, *task.patch_px, generator=generator)


def labels_of(task: Task = TASK, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(task.classes, (count, task.annotators, *task.patch_px), generator=generator)


@pytest.mark.parametrize("method", METHODS, ids=names)
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_loss_is_finite_and_differentiable_where_some_annotators_skipped(method: Method, progress: float) -> None:
    labels = labels_of()
    labels[0, 1], labels[1, :, :4] = IGNORE, IGNORE
    net = net_of(method)
    loss = method.loss(net(views_of(), labels), labels, progress)
    loss.total.backward()
    assert loss.per_patch.shape == (4,)
    assert torch.isfinite(loss.total)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_a_patch_that_nobody_looked_at_costs_nothing_that_is_not_finite(method: Method) -> None:
    labels = torch.full_like(labels_of(), IGNORE)
    loss = method.loss(net_of(method)(views_of(), labels), labels, 0.5)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_the_posterior_is_a_probability(method: Method) -> None:
    prediction = method.predict(net_of(method).eval()(views_of()))
    assert torch.allclose(prediction.posterior.sum(1), torch.ones(4, 8, 8), atol=1e-5)
    assert prediction.posterior.min() >= 0


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_an_estimated_confusion_sums_to_one_over_what_is_written(method: Method) -> None:
    confusion = method.predict(net_of(method).eval()(views_of())).confusion
    if confusion is None:
        pytest.skip("this method does not estimate confusions")
    written_axis = 1 if confusion.ndim == 3 else 2  # (A, K, K) or (B, A, K, K, *S)
    assert torch.allclose(confusion.sum(written_axis), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_prediction_is_deterministic(method: Method) -> None:
    net = net_of(method).eval()
    assert torch.equal(method.predict(net(views_of())).posterior, method.predict(net(views_of())).posterior)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_steps_on_a_toy_lower_the_loss(method: Method) -> None:
    truth = (views_of()[:, 0, 0] > 0).long()
    labels = truth[:, None].expand(-1, 3, -1, -1)
    net = net_of(method)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = method.loss(net(views_of(), labels), labels, 0.0).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(net, 0.0)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_a_method_survives_json(method: Method) -> None:
    run = Run(method=method)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def run_of(method: Method, look: Gaze, sides: tuple[int, ...]) -> Run:
    return Run(method=method, gaze=look, network=UNet(width=4), patch_px=sides)  # type: ignore[arg-type]


def trained(run: Run, task: Task) -> Learner:
    """After two steps of a training on two patches."""
    learner = Learner(run, task, Team(), 0)
    learner.net.train()
    for progress in (0.4, 0.5):
        batch = Batch(views=views_of(run.gaze, task, 2), labels=labels_of(task, 2))
        assert torch.isfinite(train_step(learner, batch, progress)["loss"])
    return learner


@pytest.mark.parametrize(("method", "look"), [*product(METHODS, GAZES), *product(SEVERAL, CHOICES)], ids=names)
@pytest.mark.parametrize("sides", [(8, 8), (4, 8, 8)], ids=["2-D", "3-D"])
def test_any_method_with_any_gaze_trains_is_saved_and_predicts(
    method: Method, look: Gaze, sides: tuple[int, ...], tmp_path: Path
) -> None:
    task = replace(TASK, patch_px=sides, classes=2, view_scales=look.scales())
    learner = trained(run_of(method, look, sides), task)
    learns = {name: p.grad for name, p in learner.bare.named_parameters() if p.requires_grad}
    # without a gradient on some worker a distributed training would wait for ever
    assert not [name for name, gradient in learns.items() if gradient is None]
    # and an eye without one would never learn where to look
    assert not [name for name, gradient in learns.items() if "foveate" in name and not gradient.any()]

    about = {"classes": ("background", "tumour"), "annotators": ("a", "b", "c"), "measured": {}}
    model = Model(run=learner.run, task=task, net=learner.bare.eval(), **about)
    save_model(tmp_path, model)
    picture = np.random.default_rng(0).normal(size=(1, *sides[:-1], 12)).astype(np.float32)
    before, after = (predict_picture(one, picture) for one in (model, load_model(tmp_path)))
    np.testing.assert_array_equal(before.posterior, after.posterior)
    np.testing.assert_allclose(after.posterior.sum(0), 1, atol=1e-4)
    assert after.posterior.shape == (2, *sides[:-1], 12)
    assert ((after.uncertainty >= 0) & (after.uncertainty <= 1)).all()
    if after.annotators is not None and after.reliability is not None:
        assert after.annotators.shape == (3, 2, *sides[:-1], 12)
        np.testing.assert_allclose(after.annotators.sum(1), 1, atol=1e-4)
        assert after.reliability.max() <= 1 + 1e-5
    assert (after.gaze is not None) == isinstance(look, FoveationGaze)
