"""Methods that doubt labels while they train: effective supervision, mean teacher, co-teaching; and those that keep all answers."""

import math

import pytest
import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.gaze import EnsembleGaze, FixedGaze, FoveationGaze
from rayters.methods import CoTeaching, EffectiveSupervision, MeanTeacher, Method, Pionono, ProbabilisticUNet
from rayters.methods.co_teaching import easy_patches, easy_pixels, taught
from rayters.methods.effective_supervision import (
    ENOUGH,
    RECENT,
    balance,
    band_mean,
    near_boundary,
    pixel_weights,
    sharpened,
    uncertainty,
)
from rayters.methods.latent import kl_of_gaussians
from rayters.methods.mean_teacher import probably_wrong
from rayters.methods.sentinel import overlap
from rayters.methods.targets import votes
from rayters.networks.backbone import UNet
from rayters.networks.task import Task

TASK = Task(channels=1, classes=2, annotators=2, patch_px=(8, 8))


def net_of(method: Method) -> nn.Module:
    torch.manual_seed(0)
    return method.build(TASK, lambda: FixedGaze().build(TASK, UNet(width=4)))


def squares(count: int = 4) -> Tensor:
    """labels (B, 2, 8, 8): two annotators who agree on a square."""
    labels = torch.zeros(count, 2, 8, 8).long()
    labels[:, :, 2:6, 2:6] = 1
    return labels


def one_hot(label: Tensor) -> Tensor:
    return votes(label.unsqueeze(1), 2)


def sure(label: Tensor, p: float = 0.95) -> Tensor:
    """A posterior (B, 2, *S) that believes in ``label`` with probability p."""
    return one_hot(label) * p + (1 - one_hot(label)) * (1 - p)


def test_uncertainty_is_one_for_a_coin_zero_for_certainty_and_has_no_gradient():
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0]])[..., None].requires_grad_()
    found = uncertainty(logits.softmax(1))
    assert found.flatten().tolist() == pytest.approx([1, 0], abs=1e-6)
    assert not found.requires_grad


def test_a_sure_teacher_overrules_the_label_and_an_unsure_one_only_weakens_it():
    target, pseudo = one_hot(torch.zeros(1, 3).long()), one_hot(torch.tensor([[0, 1, 1]]))
    unsure = torch.tensor([[0.25, 0.25, 0.75]])
    weights = {rule: pixel_weights(target, pseudo, unsure, rule=rule, sure=0.3) for rule in ("correct", "blend")}
    assert [w.tolist() for w in weights["correct"]] == [[[1, 0, 0.25]], [[0, 1, 0]]]
    assert [w.tolist() for w in weights["blend"]] == [[[0.75, 0.75, 0.25]], [[0.25, 0.25, 0.75]]]


def test_labels_along_their_own_boundary_are_kept():
    label = squares(1)[:, 0]
    near = near_boundary(one_hot(label), 1)
    assert near[0, 2:6, 2:6].sum() == 12  # the square's rim
    assert near[0].sum() == 12 + 16  # and what touches it from outside with a side
    assert near_boundary(one_hot(label), 0).sum() == 0
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    pseudo = one_hot(torch.zeros_like(label))  # the teacher sees no square at all
    method = EffectiveSupervision(pixel_rule="correct", boundary_px=1)
    method._pixelwise(logits.log_softmax(1), one_hot(label), pseudo, torch.zeros(1, 8, 8)).sum().backward()
    assert (logits.grad[0, 1, 3:5, 3:5] > 0).all()  # inside, the teacher is believed: down
    assert (logits.grad[0, 1, 2, 2:6] < 0).all()  # on the rim, the label: up


def test_a_few_wrong_foreground_pixels_do_not_vanish_in_the_mean():
    target, teacher = one_hot(squares(1)[:, 0]), sure(squares(1)[:, 0])
    values = squares(1)[:, 0].float()
    assert band_mean(values, target, teacher).item() == 1
    assert band_mean(values, torch.zeros_like(target), teacher).item() == 0


def peers(labels: Tensor, believed: Tensor) -> dict[str, Tensor]:
    """A network that knows nothing, and a peer that is sure."""
    logits = torch.zeros(len(labels), 2, 8, 8, requires_grad=True)
    return {"logits": logits, "peer_logits": believed.log().requires_grad_()}


def test_a_suspect_patch_teaches_only_where_label_and_peer_agree():
    labels = squares()
    labels[3, 0, 2:4] = 0  # a spoilt picture: half of its square is missing
    outputs = peers(labels, sure(squares()[:, 0]))
    method = EffectiveSupervision(noisy_share=0.25)
    loss = method.loss(outputs, labels, 1.0)
    assert loss.parts["noisy_patches"] == 0.25
    loss.total.backward()
    gradient = outputs["logits"].grad[3, 1]
    assert (gradient[2:4, 2:6] == 0).all()  # what the label leaves out and the peer sees
    assert (gradient[4:6, 2:6] < 0).all()  # what both see: up
    assert (gradient[6:] > 0).all()  # what neither sees: down


def test_what_is_agreed_upon_has_the_classes_in_the_proportion_that_the_peer_expects() -> None:
    target, believed = one_hot(squares(3)[:, 0]), one_hot(squares(3)[:, 0])
    target[0, :, 2:4] = one_hot(torch.zeros(1, 8, 8).long())[0, :, 2:4]  # half of this square was not drawn
    target[1] = one_hot(torch.zeros(1, 8, 8).long())[0]  # nothing of this one
    agreed = target * believed
    weight = balance(agreed, believed)[..., 0, 0]
    assert weight.tolist() == [[0.5, 1], [0, 0], [1, 1]]  # who saw none of it says nothing of the background either
    assert (agreed * balance(agreed, believed)).flatten(2).sum(2)[0].tolist() == [24, 8]  # 48 to 16
    nothing = one_hot(torch.zeros(1, 8, 8).long())
    assert balance(nothing, sure(torch.zeros(1, 8, 8).long(), 0.999)).flatten().tolist() == pytest.approx(
        [1, 1], abs=1e-2
    )


def test_a_suspect_patch_teaches_in_proportion_where_that_is_asked() -> None:
    labels = squares()
    labels[3, 0, 2:4] = 0
    gradients = {}
    for asked in ("none", "peer"):
        outputs = peers(labels, sure(squares()[:, 0], 1 - 1e-6))
        method = EffectiveSupervision(noisy_share=0.25, reuse_balance=asked)
        method.loss(outputs, labels, 1.0).total.backward()
        gradients[asked] = outputs["logits"].grad[3, 1]
    assert torch.allclose(gradients["peer"][4:6, 2:6], gradients["none"][4:6, 2:6], rtol=1e-3)
    assert torch.allclose(gradients["peer"][6:], gradients["none"][6:] / 2, rtol=1e-3)


def test_a_peer_doubts_nobody_until_it_draws_half_of_what_they_draw() -> None:
    method = EffectiveSupervision(noisy_share=0.5)
    net, labels = net_of(method).train(), squares(8)
    labels[:4, :, 2:6, 2:6] = 0
    views = labels[:, :1, None].float()
    assert net(views, labels)["credit"] == 0  # nothing is known before the first batch
    net.drawn.zero_()
    net.drawn[:] = torch.tensor([[1.0, 4.0], [3.0, 4.0]])  # Dice .25 and .75
    outputs = net(views, labels)
    assert (outputs["credit"].item(), outputs["peer_credit"].item()) == (0.5, 1)
    target, believed = one_hot(labels[:, 0]), sure(torch.zeros(8, 8, 8).long())
    counts = [int(method._suspects(target, believed, 1.0, credit=credit).sum()) for credit in (0.0, 0.5, 1.0)]
    assert counts == [0, 2, 4]
    assert overlap(believed.argmax(1), labels[:, 0]).tolist() == [0, 4 * 16]
    assert overlap(target.argmax(1), labels[:, 0]).tolist() == [2 * 4 * 16, 2 * 4 * 16]


def test_a_suspect_patch_can_learn_from_its_peer_or_be_left_out():
    labels = squares()
    labels[3] = 1 - labels[3]
    gradients = {}
    for reuse in ("pseudo", "none"):
        outputs = peers(labels, sure(squares()[:, 0]))
        EffectiveSupervision(noisy_share=0.25, reuse=reuse).loss(outputs, labels, 1.0).total.backward()
        gradients[reuse] = outputs["logits"].grad
    assert torch.allclose(gradients["pseudo"][3], gradients["pseudo"][0])  # up where the peer sees the square
    assert (gradients["none"][3] == 0).all()


def test_what_is_suspect_is_so_many_wrong_pixels_or_a_wrong_part_of_the_foreground():
    label = squares(2)[:, 0]
    label[0], label[0, 3, 3] = 0, 1  # 15 of 16 are missing
    label[1, :2] = 1  # 16 of 32 are too many
    target, believed = one_hot(label), sure(squares(2)[:, 0])
    found = {
        rule: EffectiveSupervision(image_rule=rule, noisy_share=0.5)._suspects(target, believed, 1.0).tolist()
        for rule in ("loss", "band")
    }
    assert found == {"loss": [False, True], "band": [True, False]}


def test_nobody_looked_means_nobody_teaches_not_even_the_peer() -> None:
    labels = squares()
    labels[3] = 1 - labels[3]
    labels[3, :, :, 4:] = IGNORE
    outputs = peers(labels, sure(squares()[:, 0]))
    EffectiveSupervision(noisy_share=0.25, reuse="pseudo").loss(outputs, labels, 1.0).total.backward()
    gradient = outputs["logits"].grad[3]
    assert (gradient[:, :, 4:] == 0).all()
    assert (gradient[1, 3:5, 3] < 0).all()  # where the peer sees the square


def test_what_a_suspect_patch_teaches_can_grow_with_the_training() -> None:
    labels = squares()
    labels[3] = 1 - labels[3]
    found = {}
    for ramp in ("none", "late"):
        outputs = peers(labels, sure(squares()[:, 0]))
        method = EffectiveSupervision(noisy_share=0.25, full=0.1, reuse="pseudo", reuse_ramp=ramp)
        method.loss(outputs, labels, 0.5).total.backward()
        found[ramp] = outputs["logits"].grad
    assert torch.allclose(found["late"][3], found["none"][3] * math.exp(-5 * 0.5**2))
    assert torch.equal(found["late"][:3], found["none"][:3])


def test_a_pseudo_label_is_sharpened_from_the_posterior_to_its_top() -> None:
    posterior = torch.tensor([[0.8, 0.2], [0.5, 0.5]])[..., None]
    assert torch.allclose(sharpened(posterior, 1.0), posterior)
    assert torch.allclose(sharpened(posterior, 0.5)[0, :, 0], torch.tensor([0.64, 0.04]) / 0.68)
    assert sharpened(posterior, 0.0)[..., 0].tolist() == [[1, 0], [1, 0]]
    with pytest.raises(ValueError, match="must not be negative"):
        EffectiveSupervision(pseudo_temperature=-1.0)


def test_a_small_object_is_not_suspect_for_its_boundary() -> None:
    label = torch.zeros(2, 8, 8).long()
    label[0, 1:4, 1:4] = 1  # small and right: unsure along its boundary, as everybody is
    label[1, 1:7, 1:7] = 1  # large and wrong: unsure within it
    believed = sure(label, 0.99)
    believed[0, :, near_boundary(one_hot(label), 1)[0]] = 0.5
    believed[1, :, 3:5, 3:5] = 0.5
    method = EffectiveSupervision(image_rule="uncertainty", noisy_share=0.5)
    assert method._suspects(one_hot(label), believed, 1.0).tolist() == [False, True]


@pytest.mark.parametrize("patches", [1, 2, 3])
def test_few_patches_are_compared_with_those_before_them(patches: int) -> None:
    method = EffectiveSupervision(noisy_share=0.25)
    net, right = net_of(method).train(), squares(patches)
    views, wrong = right[:, :1, None].float(), right.clone()
    wrong[0] = 1 - wrong[0]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(RECENT):
        loss = method.loss(net(views, right), right, 0.5)
        assert loss.parts["noisy_patches"] == 0 or step * patches >= RECENT  # nothing to compare with until then
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert method.loss(net(views, wrong), wrong, 1.0).parts["noisy_patches"] == pytest.approx(1 / patches)
    assert method.loss(net(views, right), right, 1.0).parts["noisy_patches"] < 1


def test_the_noisy_share_of_few_patches_is_that_of_the_patches_before_them() -> None:
    method, label = EffectiveSupervision(noisy_share=0.25), squares(1)[:, 0]
    recent = torch.arange(RECENT) / RECENT  # scores, of which a quarter are 3/4 or more
    for p, suspect in ((0.6, False), (0.4, True)):  # -log p is .51 and .92
        assert method._suspects(one_hot(label), sure(label, p), 1.0, recent).item() == suspect
    assert not method._suspects(one_hot(label), sure(label, 0.4), 0.01, recent).any()  # in the warm-up
    recent[0] = -1  # one is not there yet
    assert not method._suspects(one_hot(label), sure(label, 0.4), 1.0, recent).any()


def test_enough_patches_are_compared_with_each_other_alone() -> None:
    net, labels = net_of(EffectiveSupervision()).train(), squares(ENOUGH)
    outputs = net(torch.randn(ENOUGH, 1, 1, 8, 8), labels)
    assert "recent_scores" not in outputs
    assert (net.recent == -1).all()


def test_what_nobody_looked_at_is_not_remembered() -> None:
    net, labels = net_of(EffectiveSupervision()).train(), squares(2)
    labels[1] = IGNORE
    net(torch.randn(2, 1, 1, 8, 8), labels)
    assert (net.recent >= 0).sum(1).tolist() == [1, 1]
    net.eval()(torch.randn(2, 1, 1, 8, 8), labels)
    assert (net.recent >= 0).sum(1).tolist() == [1, 1]


def test_in_the_warm_up_nothing_is_believed_but_labels():
    labels = squares()
    outputs = peers(labels, sure(1 - labels[:, 0])) | {"logits": torch.linspace(-1, 1, 4 * 2 * 64).view(4, 2, 8, 8)}
    plain = EffectiveSupervision(image_rule="none").loss(outputs, labels, 0.9).total
    assert EffectiveSupervision(warm_up=0.2).loss(outputs, labels, 0.1).total == plain
    assert EffectiveSupervision().loss(outputs, labels, 0.9).total != plain
    assert (
        EffectiveSupervision(image_rule="none", pixel_rule="correct", boundary_px=0).loss(outputs, labels, 0.9).total
        != plain
    )


def test_the_teacher_only_follows():
    method = MeanTeacher()
    net, labels = net_of(method).train(), squares()
    for slow, fast in zip(net.teacher.parameters(), net.eye.parameters(), strict=True):
        assert not slow.requires_grad
        assert torch.equal(slow, fast)
    method.loss(net(torch.randn(4, 1, 1, 8, 8), labels), labels, 0.9).total.backward()
    before = [p.clone() for p in net.teacher.parameters()]
    with torch.no_grad():
        for p in net.eye.parameters():
            p += 1
    method.after_step(net, 0.9)
    for slow, old, fast in zip(net.teacher.parameters(), before, net.eye.parameters(), strict=True):
        assert slow.grad is None
        assert torch.allclose(slow, old + (fast - old) * 10 / 11, atol=1e-6)
    assert net.steps == 1


def test_confident_learning_flags_the_flipped_pixels_and_no_others():
    label = squares()[:, 0]
    flipped = label.clone()
    flipped[0, 3, 3], flipped[1, 0, 0] = 0, 1
    teacher = sure(label, 0.9)
    assert probably_wrong(one_hot(flipped), teacher).nonzero().tolist() == [[0, 3, 3], [1, 0, 0]]
    assert not probably_wrong(one_hot(label), teacher).any()
    unseen = flipped.clone()
    unseen[0, 3, 3] = IGNORE
    assert probably_wrong(one_hot(unseen), teacher).nonzero().tolist() == [[1, 0, 0]]


def test_the_easy_share_is_kept():
    target = one_hot(squares()[:, 0])
    cost = torch.arange(4 * 64).view(4, 8, 8).float()
    assert easy_pixels(cost, target, 0.25).sum() == 64
    assert easy_patches(cost, target, 0.5).flatten(1).any(1).tolist() == [True, True, False, False]
    assert easy_pixels(cost, torch.zeros_like(target), 0.5).sum() == 0
    chosen = easy_pixels(cost, target, 0.25)
    assert taught(cost, target, chosen).mean() == cost[chosen].mean()


def test_a_patch_that_nobody_looked_at_is_not_the_easiest() -> None:
    target = one_hot(squares()[:, 0])
    target[0] = 0
    cost = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1).expand(4, 8, 8)  # it costs nothing
    assert easy_patches(cost, target, 0.34).flatten(1).any(1).tolist() == [False, True, False, False]
    assert not easy_patches(cost, torch.zeros_like(target), 0.5).any()


def test_what_is_taught_is_the_mean_over_the_chosen_pixels_however_few_a_patch_has() -> None:
    target = one_hot(squares()[:, 0])
    target[0, :, 2:], target[1, :, :, 1:] = 0, 0  # half of the patches are labelled in part
    cost = torch.arange(4 * 64).view(4, 8, 8).float()
    chosen = easy_pixels(cost, target, 0.5)
    assert 0 < chosen[1].sum() < chosen[2].sum()
    assert taught(cost, target, chosen).mean().item() == pytest.approx(cost[chosen].mean().item())
    assert taught(cost, target, torch.zeros_like(chosen)).mean() == 0


def test_each_network_learns_what_its_peer_finds_easy():
    labels = squares()
    logits = torch.zeros(4, 2, 8, 8, requires_grad=True)
    peer = torch.zeros(4, 2, 8, 8)
    peer[3] = 4 * (1 - one_hot(labels[:, 0]))[3] - 2  # the peer finds patch 3 hard
    loss = CoTeaching(level="patch", noisy_share=0.25).loss({"logits": logits, "peer_logits": peer}, labels, 1.0)
    loss.total.backward()
    assert (logits.grad[3] == 0).all()
    assert (logits.grad[:3] != 0).any()


@pytest.mark.parametrize("method", [CoTeaching(), EffectiveSupervision()], ids=lambda method: type(method).__name__)
def test_two_networks_that_teach_each_other_start_apart(method: Method) -> None:
    net = net_of(method)
    assert any(not torch.equal(a, b) for a, b in zip(net.eye.parameters(), net.peer.parameters(), strict=True))


def test_kl_of_a_gaussian_with_itself_is_nothing_and_by_hand_otherwise():
    zero, wide = torch.zeros(3), torch.full((3,), 2 * torch.log(torch.tensor(2.0)))
    assert kl_of_gaussians(zero, zero, zero, zero) == 0
    by_torch = torch.distributions.kl_divergence(torch.distributions.Normal(1, 1), torch.distributions.Normal(0, 2))
    assert kl_of_gaussians(zero + 1, zero, zero, wide).item() == pytest.approx(3 * by_torch.item())


class Glance(nn.Module):
    """The smallest eye: two pointwise layers."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.head = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        features = self.see(views[:, 0]).relu()
        return {"logits": self.head(features), "features": features}


def taught_styles(method: Method, steps: int = 150) -> tuple[nn.Module, Tensor]:
    """Two annotators who disagree everywhere, on pictures that tell nothing."""
    torch.manual_seed(0)
    net, views = method.build(TASK, Glance).train(), torch.zeros(8, 1, 1, 8, 8)
    labels = torch.stack([torch.zeros(8, 8, 8), torch.ones(8, 8, 8)], dim=1).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = method.loss(net(views, labels), labels, 0.5).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), views


def test_pionono_tells_two_styles_apart_and_believes_their_mean():
    method = Pionono()
    net, views = taught_styles(method)
    styles = [net.as_annotator(views, a)[:, 1].mean().item() for a in (0, 1)]
    assert styles[0] < 0.1
    assert styles[1] > 0.9
    assert method.predict(net(views)).posterior[:, 1].mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_probabilistic_u_nets_samples_are_one_annotator_or_the_other():
    net, views = taught_styles(ProbabilisticUNet(kl_weight=0.02))
    torch.manual_seed(0)
    samples = net.sample(views[:1], 40)[0, :, 1].mean((1, 2))
    assert ((samples < 0.2) | (samples > 0.8)).float().mean() > 0.7
    assert 0.2 < samples.mean() < 0.8


def test_a_teacher_looks_as_at_evaluation_while_its_student_learns() -> None:
    task = Task(channels=1, classes=2, annotators=1, patch_px=(8, 8), view_scales=(1.0, 2.0, 4.0))
    net = MeanTeacher().build(task, lambda: EnsembleGaze().build(task, UNet(width=4))).train()
    assert net.eye.training
    assert not any(part.training for part in net.teacher.modules())


def test_at_evaluation_the_teacher_is_heard_and_its_gaze_is_the_one_shown() -> None:
    task = Task(channels=1, classes=2, annotators=1, patch_px=(8, 8), view_scales=(1.0, 2.0, 4.0))
    net = MeanTeacher().build(task, lambda: FoveationGaze().build(task, UNet(width=4))).eval()
    with torch.no_grad():
        for p in net.eye.parameters():
            p += 0.1
        views = torch.randn(2, 3, 1, 8, 8)
        outputs, taught = net(views), net.teacher(views)
    assert all(torch.equal(outputs[name], value) for name, value in taught.items())
    assert torch.equal(outputs["teacher_logits"], taught["logits"])
