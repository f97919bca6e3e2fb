"""Laws that every method keeps, with every gaze, on pictures and volumes. A new method joins by being in ``methods.ALL``."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from casebook import IGNORE
from rayters import gaze, methods
from rayters.gaze import FixedGaze, Gaze
from rayters.methods import Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.training.run import Run, from_json, to_json

TASK = Task(channels=1, classes=3, annotators=3, patch_px=(8, 8))
METHODS = [kind() for kind in methods.ALL]
names = lambda value: type(value).__name__


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
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
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


@pytest.mark.parametrize(("method", "look"), product(METHODS, [kind() for kind in gaze.ALL]), ids=names)
@pytest.mark.parametrize("sides", [(8, 8), (4, 8, 8)], ids=["2-D", "3-D"])
def test_any_method_composes_with_any_gaze(method: Method, look: Gaze, sides: tuple[int, ...]) -> None:
    task = replace(TASK, patch_px=sides, classes=2)
    net, views, labels = net_of(method, look, task), views_of(look, task, 2), labels_of(task, 2)
    outputs = net(views, labels)
    loss = method.loss(outputs, labels, 0.5)
    added = look.added_loss(outputs, loss.per_patch.detach(), lambda other: method.loss(other, labels, 0.5).per_patch)
    (loss.total + added).backward()
    again = net_of(method, look, task, seed=7)
    again.load_state_dict(net.state_dict())
    before, after = (method.predict(one.eval()(views)).posterior for one in (net, again))
    assert torch.equal(before, after)
    assert before.shape == (2, 2, *sides)
