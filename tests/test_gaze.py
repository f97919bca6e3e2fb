"""What every gaze must keep, and what each promises."""

import pytest
import torch
from torch import nn

from rayters import gaze
from rayters.gaze import AverageGaze, EnsembleGaze, FixedGaze, FoveationGaze, Gaze, RandomGaze
from rayters.gaze.gaze import align, eyes_of
from rayters.gaze.several import every_view, mixture, one_view
from rayters.methods import CoTeaching, EffectiveSupervision, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task

TASK = Task(channels=1, classes=3, annotators=2, patch_px=(16, 16))
NET = UNet(width=4)
EVERY = (
    [look() for look in gaze.ALL]
    + [FoveationGaze(choose=c) for c in ("mode", "gumbel", "reinforce")]
    + [FoveationGaze(choose="reinforce", own_weight=0.0), FoveationGaze(blend="pixels"), AverageGaze(blend="pixels")]
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


def test_patches_can_be_aligned_each_at_a_scale_of_its_own() -> None:
    wide = torch.randn(3, 2, 4, 16, 16)
    each = align(wide, torch.tensor([1.0, 2.0, 4.0]))
    for patch, scale in enumerate((1.0, 2.0, 4.0)):
        assert torch.equal(each[patch], align(wide[patch : patch + 1], scale)[0])


def test_a_wide_view_lands_on_the_right_pixels_in_half_precision_too() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(8, 64)[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        half = align(stripes.bfloat16(), 4.0)
    assert half.dtype == torch.bfloat16
    assert (half.float() - align(stripes, 4.0)).abs().max() < 0.005  # what bfloat16 keeps of a number up to 1


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


def undecided(look: Gaze, views: torch.Tensor) -> nn.Module:
    """An eye at evaluation whose patches do not all choose the same view."""
    eye = eye_of(look).eval()
    weigh = eye.foveate.layers[-1]
    with torch.no_grad():
        nn.init.normal_(weigh.weight, std=20.0)
        weigh.bias -= eye.foveate.layers(views[:, -1]).mean(0)
    return eye


def passes(eye: nn.Module, views: torch.Tensor) -> int:
    """Patches that go through the backbone at one look."""
    seen: list[int] = []
    hook = eye.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    eye(views)
    hook.remove()
    return sum(seen)


def test_where_one_view_decides_the_others_are_not_looked_at() -> None:
    views = torch.randn(8, 3, 1, 16, 16)
    for choose in ("mode", "gumbel", "reinforce"):
        assert passes(eye_of(FoveationGaze(choose=choose)).eval(), views) == 8
        assert (
            passes(eye_of(FoveationGaze(choose=choose)), views) == 24
        )  # in a training the others teach, or are taught
    assert passes(eye_of(FoveationGaze(choose="reinforce", own_weight=0.0)), views) == 8
    assert passes(eye_of(RandomGaze()), views) == 8
    assert passes(eye_of(RandomGaze()).eval(), views) == 24
    assert passes(eye_of(FoveationGaze()).eval(), views) == 24


@pytest.mark.parametrize("chosen_by", ["foveation", "chance"])
def test_to_look_at_one_view_alone_changes_nothing(chosen_by: str) -> None:
    views = torch.randn(16, 3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    eye = undecided(FoveationGaze(choose="mode"), views) if chosen_by == "foveation" else eye_of(RandomGaze())
    alone = eye(views)
    together = every_view(eye.backbone, eye.head, views, alone["view_weights"], (1.0, 2.0, 4.0))
    assert len(alone["view_weights"].argmax(1).unique()) == 3
    assert torch.allclose(alone["logits"].softmax(1), together["logits"].softmax(1), atol=1e-5)
    assert torch.allclose(alone["features"], together["features"], atol=1e-5)


class Glance(nn.Module):
    """The smallest eye that looks at the brighter of two views."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        chosen = views.flatten(2).mean(2).argmax(1)
        return one_view(nn.Identity(), nn.Identity(), views, chosen, (1.0, 2.0))["logits"]


def test_a_net_that_looks_at_one_view_is_exported_for_batches_of_any_size() -> None:
    views = torch.randn(5, 2, 1, 4, 4)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(Glance(), (views[:2],), dynamic_shapes=(batch,)).module()
    assert torch.allclose(program(views), Glance()(views), atol=1e-6)


def test_an_average_of_pixels_is_one_look_at_the_mean_of_the_views() -> None:
    look = AverageGaze(blend="pixels")
    eye, views = eye_of(look), views_of(look, 16, 16)
    assert torch.allclose(eye(views)["features"], eye.backbone(views.mean(1)), atol=1e-5)
    assert passes(eye, views) == 3


@pytest.mark.parametrize("method", [CoTeaching(), EffectiveSupervision()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("look", [look for look in EVERY if isinstance(look, FoveationGaze)], ids=str)
def test_each_of_two_eyes_learns_where_to_look(look: Gaze, method: Method) -> None:
    task = Task(channels=1, classes=2, annotators=2, patch_px=(16, 16), view_scales=look.scales())
    torch.manual_seed(0)
    net = method.build(task, lambda: look.build(task, NET)).train()
    labels = (views_of(look, 16, 16)[:, :1, 0] > 0).long().expand(-1, 2, -1, -1)
    outputs = net(views_of(look, 16, 16), labels)
    of = lambda other: method.loss(other, labels, 0.5).per_patch
    (of(outputs).mean() + look.added_loss(outputs, of(outputs).detach(), of)).backward()
    for eye in (net.eye, net.peer):
        assert not [name for name, parameter in eye.named_parameters() if parameter.grad is None]
        assert eye.foveate.layers[-1].weight.grad.any()


def test_every_view_of_both_eyes_learns_from_its_own_loss() -> None:
    method, look = CoTeaching(), FoveationGaze(choose="mode")
    task = Task(channels=1, classes=2, annotators=2, patch_px=(16, 16), view_scales=look.scales())
    labels = (views_of(look, 16, 16)[:, :1, 0] > 0).long().expand(-1, 2, -1, -1)
    outputs = method.build(task, lambda: look.build(task, NET)).train()(views_of(look, 16, 16), labels)
    of = lambda other: method.loss(other, labels, 0.5).per_patch
    both = outputs["view_logits"], outputs["peer_view_logits"]
    for gradient in torch.autograd.grad(look.added_loss(outputs, of(outputs).detach(), of), both):
        assert gradient.abs().sum((0, 2, 3, 4)).gt(0).all()


def test_each_of_two_eyes_sees_the_other_as_its_peer_and_does_not_teach_it() -> None:
    logits = torch.zeros(2, 1, requires_grad=True)
    first, second = eyes_of({"logits": logits[0], "peer_logits": logits[1] + 1})
    assert [first["logits"], first["peer_logits"], second["logits"], second["peer_logits"]] == [0, 1, 1, 0]
    assert first["logits"].requires_grad
    assert second["logits"].requires_grad
    assert not first["peer_logits"].requires_grad
    assert not second["peer_logits"].requires_grad
    assert eyes_of(first | {"peer_logits": logits[1]})[0].keys() == {"logits", "peer_logits"}
    assert eyes_of({"logits": logits}) == [{"logits": logits}]


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


def gradient_of_the_draw(view: int, costs: torch.Tensor, scores: torch.Tensor, own_weight: float) -> torch.Tensor:
    """What REINFORCE tells each patch's scores of two views, (B, 2), when ``view`` was drawn; costs: (V, B) of each view."""
    patches = costs.shape[1]
    scores = scores.repeat(patches, 1).requires_grad_()
    look = FoveationGaze(choose="reinforce", fields_of_view=(1.0, 2.0), own_weight=own_weight, entropy_weight=0.0)
    outputs = {
        "view_log_weights": scores.log_softmax(1),
        "view_weights": torch.eye(2)[view].expand(patches, 2),
        "view_logits": torch.arange(2.0).expand(patches, 2),  # stands for its own number
    }
    of_view = lambda other: costs[int(other["logits"][0])]
    look.added_loss(outputs, costs[view], of_view).backward()
    return scores.grad


@pytest.mark.parametrize("own_weight", [1.0, 0.0])
def test_of_a_single_patch_reinforce_learns_the_gradient_of_what_it_expects_to_lose(own_weight: float) -> None:
    costs, scores = torch.tensor([[1.0], [3.0]]), torch.tensor([0.2, -0.5])
    f = scores.softmax(0)
    mean = sum(f[view] * gradient_of_the_draw(view, costs, scores, own_weight)[0] for view in (0, 1))
    expected = torch.autograd.functional.jacobian(lambda x: (x.softmax(0) * costs[:, 0]).sum(), scores)
    assert torch.allclose(mean, expected, atol=1e-6)
    assert mean[0] < 0 < mean[1]  # descending raises the cheaper view's probability


def test_reinforce_does_not_take_a_hard_patch_for_a_bad_view() -> None:
    costs, scores = torch.tensor([[1.0, 9.0], [1.0, 9.0]]), torch.zeros(2)  # both views do alike
    assert gradient_of_the_draw(0, costs, scores, 1.0).abs().max() < 1e-6


def test_reinforce_alone_is_rewarded_for_being_undecided_unless_told_otherwise() -> None:
    for look, less_sure in (
        (FoveationGaze(choose="reinforce"), True),  # else it draws one view only, and never hears of the others
        (FoveationGaze(choose="reinforce", entropy_weight=0.0), False),
        (FoveationGaze(choose="mode"), False),
        (FoveationGaze(choose="mode", entropy_weight=0.1), True),
    ):
        scores = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
        outputs = {"view_log_weights": scores.log_softmax(0).expand(2, 3), "view_weights": torch.eye(3)[:2]}
        look.added_loss(outputs, torch.zeros(2), background).backward()
        assert bool(scores.grad[0] > 0) == less_sure


def test_a_field_of_view_narrower_than_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match="does not cover the target"):
        FixedGaze(field_of_view=0.5)
    with pytest.raises(ValueError, match="ascending"):
        FoveationGaze(fields_of_view=(2.0, 1.0))
