"""What every gaze must keep, and what each promises."""

import pytest
import torch
from torch import nn

from rayters import gaze
from rayters.gaze import EnsembleGaze, FixedGaze, FoveationGaze, Gaze
from rayters.gaze.gaze import align
from rayters.gaze.several import mixture
from rayters.networks.backbone import UNet
from rayters.networks.task import Task

TASK = Task(channels=1, classes=3, annotators=2, patch_px=(16, 16))
NET = UNet(width=4)
EVERY = (
    [look() for look in gaze.ALL]
    + [FoveationGaze(choose=c) for c in ("mode", "gumbel", "reinforce")]
    + [FoveationGaze(blend="pixels")]
)


def views_of(look: Gaze, *sides: int) -> torch.Tensor:
    return torch.randn(3, len(look.scales()), 1, *sides, generator=torch.Generator().manual_seed(1))


def background(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return outputs["logits"].log_softmax(1)[:, 0].flatten(1).mean(1)


def eye_of(look: Gaze, task: Task = TASK) -> nn.Module:
    torch.manual_seed(0)
    return look.build(task, NET)


@pytest.mark.parametrize("look", EVERY, ids=str)
def test_the_outputs_lie_on_the_grid_of_the_target(look: Gaze) -> None:
    outputs = eye_of(look)(views_of(look, 16, 16))
    assert outputs["logits"].shape == (3, 3, 16, 16)
    assert outputs["features"].shape == (3, 4, 16, 16)


@pytest.mark.parametrize("look", EVERY, ids=str)
def test_volumes_are_looked_at_as_pictures_are(look: Gaze) -> None:
    task = Task(channels=1, classes=2, annotators=2, patch_px=(4, 8, 8))
    assert eye_of(look, task)(views_of(look, 4, 8, 8))["logits"].shape == (3, 2, 4, 8, 8)


@pytest.mark.parametrize("look", EVERY, ids=str)
def test_evaluation_draws_nothing(look: Gaze) -> None:
    eye, views = eye_of(look).eval(), views_of(look, 16, 16)
    assert torch.equal(eye(views)["logits"], eye(views)["logits"])


@pytest.mark.parametrize("look", EVERY, ids=str)
def test_every_parameter_gets_a_gradient(look: Gaze) -> None:
    eye = eye_of(look)
    for _ in range(2):  # the weight of the last layer starts at zero and shields the layers before it for one step
        outputs = eye(views_of(look, 16, 16))
        per_patch = background(outputs)
        (per_patch.mean() + look.added_loss(outputs, per_patch.detach(), background)).backward()
        with torch.no_grad():
            for parameter in eye.parameters():
                parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0
    missing = [name for name, parameter in eye.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not [name for name in missing if "foveate" in name or "head" in name]


def test_a_wide_view_lands_on_the_right_pixels() -> None:
    wide = torch.arange(16.0).repeat(16, 1)[None, None]  # brightness = column of a view twice as wide as the target
    centre = align(wide, 2.0)[0, 0, 8]
    assert centre[0] == pytest.approx(3.75)  # the target begins at column 4, its pixels are half a view pixel wide
    assert (centre[1:] - centre[:-1]).mean() == pytest.approx(0.5, abs=0.01)


def test_equal_views_leave_foveation_nothing_to_learn() -> None:
    look = FoveationGaze(fields_of_view=(1.0, 1.0000001))
    eye = eye_of(look)
    same = torch.randn(2, 1, 1, 16, 16).expand(-1, 2, -1, -1, -1)
    eye(same)["logits"].log_softmax(1)[:, 0].mean().backward()
    last = eye.foveate.layers[-1]
    assert last.bias.grad.abs().max() < 1e-6


def test_a_straight_through_choice_hears_from_the_views_that_it_did_not_choose() -> None:
    weights = torch.tensor([[1.0, 0.0]], requires_grad=True)
    wrong, right = torch.tensor([0.0, 5.0]), torch.tensor([5.0, 0.0])  # logits of two classes; the first class is true
    logits = torch.stack([wrong, right]).view(1, 2, 2, 1, 1)
    (-mixture(logits, torch.zeros(1, 2, 1, 1, 1), weights)["logits"][:, 0].sum()).backward()
    chosen, better = weights.grad[0].tolist()
    assert better < min(0, chosen)  # descending raises the better view's weight


def test_a_mixture_of_posteriors_is_their_weighted_sum() -> None:
    logits, weights = torch.randn(2, 3, 4, 5, 5), torch.rand(2, 3).softmax(1)
    mixed = mixture(logits, torch.zeros(2, 3, 1, 5, 5), weights)["logits"].softmax(1)
    assert torch.allclose(mixed, (logits.softmax(2) * weights[..., None, None, None]).sum(1), atol=1e-6)


def test_a_view_without_weight_still_learns_from_its_own_loss() -> None:
    look = FoveationGaze(choose="mode")
    eye = eye_of(look)
    outputs = eye(views_of(look, 16, 16))
    outputs["view_logits"].retain_grad()
    look.added_loss(outputs, background(outputs).detach(), background).backward()
    assert outputs["view_logits"].grad.abs().sum((0, 2, 3, 4)).gt(0).all()


@pytest.mark.parametrize("patches", [1, 2, 3, 7])
def test_every_patch_of_an_ensembles_training_is_seen_by_one_network(patches: int) -> None:
    look = EnsembleGaze()
    eye, views = eye_of(look), torch.randn(patches, 3, 1, 16, 16)
    outputs = eye(views)
    for patch, member in enumerate(outputs["view_weights"].argmax(1).tolist()):
        alone = align(eye.backbones[member](views[patch : patch + 1, member]), look.scales()[member])
        assert torch.allclose(outputs["features"][patch], alone[0], atol=1e-4)
    outputs["logits"].sum().backward()
    # Without a gradient on some worker a distributed training would wait for ever.
    assert all(parameter.grad is not None for parameter in eye.parameters())


def test_reinforce_does_not_push_the_network_up_its_own_loss() -> None:
    look = FoveationGaze(choose="reinforce")
    outputs = eye_of(look)(views_of(look, 16, 16))
    per_patch = outputs["logits"].mean((1, 2, 3))
    policy = look.added_loss(outputs, per_patch.detach(), background)
    assert torch.autograd.grad(policy, outputs["logits"], allow_unused=True, retain_graph=True)[0] is None


def test_reinforce_prefers_the_view_with_the_smaller_loss() -> None:
    look = FoveationGaze(choose="reinforce", fields_of_view=(1.0, 2.0))
    scores = torch.zeros(2, requires_grad=True)
    outputs = {"view_log_weights": scores.log_softmax(0).expand(2, 2), "view_weights": torch.eye(2)}
    look.added_loss(outputs, torch.tensor([1.0, 3.0]), background).backward()
    assert scores.grad[0] < 0 < scores.grad[1]  # descending raises the first view's probability


def test_a_field_of_view_narrower_than_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match="does not cover the target"):
        FixedGaze(field_of_view=0.5)
    with pytest.raises(ValueError, match="ascending"):
        FoveationGaze(fields_of_view=(2.0, 1.0))
