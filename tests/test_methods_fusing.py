"""Methods that settle on one target per pixel: STAPLE, Dawid-Skene, one or a random annotator, soft labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.annotators import fuse
from rayters.methods import DawidSkene, OneAnnotator, RandomAnnotator, RobustLoss, SoftLabels, Staple
from rayters.methods.mixture_of_products import posterior_of_truth, written_where
from rayters.methods.random_annotator import drawn_annotator
from rayters.methods.robust_losses import LOG_ZERO
from rayters.methods.smoothing import blur, intensity_prior
from rayters.methods.staple import staple
from rayters.networks.task import Task

RATES = [(0.95, 0.98), (0.9, 0.9), (0.7, 0.95), (0.6, 0.8), (0.85, 0.85)]  # sensitivity, specificity


def crowd(seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    truth = (y**2 + x**2 < (size / 4) ** 2).astype(np.uint8)
    flips = [rng.random(truth.shape) > np.where(truth == 1, se, sp) for se, sp in RATES]
    return truth, np.stack([truth ^ flip for flip in flips]).astype(np.uint8)


class Still(nn.Module):
    """An eye that always sees the same: one learnable logit per class."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        shape = (len(views), len(self.bias), *views.shape[3:])
        logits = self.bias.view(1, -1, *(1,) * (views.ndim - 3)).expand(shape)
        return {"logits": logits, "features": logits}


def test_staple_on_the_fly_is_simpleitks():
    _, layers = crowd()
    ours = staple(torch.from_numpy(layers).long()[None], 2, iterations=30)
    assert np.allclose(ours[0].numpy(), fuse.staple(layers, classes=2).posterior, atol=2e-3)


def test_staple_of_each_patch_is_its_own():
    layers = torch.stack([torch.from_numpy(crowd(seed)[1]).long() for seed in (0, 1)])
    layers[1, 2:] = IGNORE
    both = staple(layers, 2, iterations=10)
    for b in range(2):
        assert torch.allclose(both[b], staple(layers[b : b + 1], 2, iterations=10)[0], atol=1e-5)


def test_staple_of_blank_and_unseen_patches_is_finite():
    blank, unseen = torch.zeros(1, 3, 4, 4).long(), torch.full((1, 3, 4, 4), IGNORE)
    assert staple(blank, 2, iterations=5)[0, 0].min() > 0.99
    assert staple(unseen, 2, iterations=5).abs().sum() == 0


def test_the_e_and_m_step_count_what_was_written_where():
    labels = torch.tensor([[[0, 1, IGNORE, 1]]])
    truth = torch.tensor([[[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    assert written_where(labels, truth)[0, 0].tolist() == [[1, 0], [1, 1]]
    confusion = torch.tensor([[[[0.9, 0.2], [0.1, 0.8]]]])
    posterior = posterior_of_truth(labels, confusion, torch.tensor([[0.5, 0.5]]))
    assert posterior[0, 1].tolist() == pytest.approx([0.2 / 1.1, 0.8 / 0.9, 0.0, 0.8 / 0.9])


def test_dawid_skene_learns_the_confusions_of_the_stream():
    method = DawidSkene(memory=0.9)
    task = Task(channels=1, classes=2, annotators=5, patch_px=(64, 64))
    net = method.build(task, Still).train()
    for step in range(60):
        labels = torch.from_numpy(crowd(step)[1]).long()[None]
        if step % 2:
            labels[:, 3] = IGNORE
        outputs = net(torch.zeros(1, 1, 1, 64, 64), labels)
    confusion = method.predict(outputs).confusion
    found = [(c[1, 1].item(), c[0, 0].item()) for c in confusion]
    assert np.allclose(found, RATES, atol=0.05)
    kept = net.counts.clone()
    net(torch.zeros(1, 1, 1, 64, 64), torch.full((1, 5, 64, 64), IGNORE))
    assert torch.equal(net.counts, kept)
    net.eval()(torch.zeros(1, 1, 1, 64, 64), labels)
    assert torch.equal(net.counts, kept)


def test_only_those_who_looked_are_drawn():
    labels = torch.full((200, 3, 2, 2), IGNORE)
    labels[:, 1] = 0
    labels[:100, 2, 0] = 1
    who = drawn_annotator(labels, torch.rand(200, 3))
    assert set(who[:100].tolist()) == {1, 2}
    assert set(who[100:].tolist()) == {1}


def test_a_random_annotators_expected_loss_is_that_of_the_mean_label():
    method, task = RandomAnnotator(), Task(channels=1, classes=2, annotators=3, patch_px=(4, 4))
    labels = torch.randint(2, (1, 3, 4, 4))
    net, views = method.build(task, Still), torch.zeros(1, 1, 1, 4, 4)
    nn.init.constant_(net.eye.bias[1:2], 0.7)
    torch.manual_seed(0)
    drawn = torch.stack([method.loss(net(views, labels), labels, 0).total for _ in range(400)]).mean()
    assert drawn.item() == pytest.approx(method.loss(net(views), labels, 0).total.item(), abs=0.02)


def test_only_the_one_annotator_counts():
    method, task = OneAnnotator(annotator=1), Task(channels=1, classes=2, annotators=3, patch_px=(4, 4))
    labels = torch.randint(2, (2, 3, 4, 4))
    other = labels.clone()
    other[:, [0, 2]] = IGNORE
    outputs = method.build(task, Still)(torch.zeros(2, 1, 1, 4, 4))
    assert torch.equal(method.loss(outputs, labels, 0).per_patch, method.loss(outputs, other, 0).per_patch)
    with pytest.raises(ValueError, match="3"):
        replace(method, annotator=3).build(task, Still)


@pytest.mark.parametrize("method", [RobustLoss(fusion="mean"), RobustLoss(loss_name="dice+ce"), SoftLabels(), Staple()])
def test_an_annotator_who_did_not_look_is_as_one_who_does_not_exist(method):
    labels = torch.randint(2, (2, 3, 6, 6))
    outputs = {"logits": torch.randn(2, 2, 6, 6)}
    more = torch.cat([labels, torch.full_like(labels[:, :1], IGNORE)], dim=1)
    assert torch.allclose(method.loss(outputs, labels, 0.5).per_patch, method.loss(outputs, more, 0.5).per_patch)


def test_every_robust_loss_can_be_chosen_and_prefers_the_label():
    good, bad = torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1), torch.tensor([3.0, -3.0]).view(1, 2, 1, 1)
    labels = torch.ones(1, 2, 1, 1).long()
    for name in RobustLoss.__dataclass_fields__["loss_name"].metadata["options"]:
        method = RobustLoss(loss_name=name)
        assert method.loss({"logits": good}, labels, 0).total < method.loss({"logits": bad}, labels, 0).total, name


def test_soft_labels_are_the_weighted_share():
    labels = torch.tensor([1, 0, IGNORE, 1]).view(1, 4, 1, 1)
    method = SoftLabels(blur_px=0, clip=0, annotator_weights=(3.0, 1.0, 5.0, 0.0))
    assert method.target(labels, 2).flatten().tolist() == [0.25, 0.75]


def test_nothing_lies_outside_the_region_and_the_region_has_no_vote():
    labels = torch.tensor([[[1, 1, 1]], [[1, 0, IGNORE]]])[None]  # one annotator, one region
    found = SoftLabels(blur_px=0, clip=0, region=1).target(labels, 2)
    assert found[0, 1].flatten().tolist() == [1, 0, 1]


def test_soft_labels_stay_off_certainty_and_sum_to_one():
    labels = torch.randint(2, (1, 3, 8, 8))
    labels[:, :, :2] = IGNORE
    found = SoftLabels(clip=0.02).target(labels, 2)
    assert torch.allclose(found.sum(1), (labels != IGNORE).any(1).float())
    assert found[:, :, 2:].min() >= 0.019


def test_a_blurred_boundary_falls_off_and_the_unseen_lends_nothing():
    target = torch.zeros(1, 2, 9, 9)
    target[:, 1, :, :4], target[:, 0, :, 4:] = 1, 1
    soft = blur(target, 1.0)[0, 1, 4]
    assert soft[0] > 0.95
    assert soft[3] == pytest.approx(1 - soft[4].item(), abs=1e-4)
    assert soft[8] < 0.01
    target[:, :, :, :4] = 0  # nobody looked at the foreground
    assert blur(target, 1.0)[0, 1].sum() == 0


def test_the_intensity_prior_takes_back_what_does_not_look_like_the_rest():
    image = torch.zeros(1, 1, 12, 12)
    image[..., 3:9, 3:9] = 5
    image = image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    drawn = torch.zeros(1, 2, 12, 12)
    drawn[:, 1, 3:9, 3:10] = 1  # one column too many
    drawn[:, 0] = 1 - drawn[:, 1]
    prior = intensity_prior(image, drawn)
    assert prior[0, 1, 3:9, 3:9].min() > 0.9
    assert prior[0, 1, 3:9, 9].mean() < 0.9
    blank = torch.stack([torch.ones(1, 12, 12), torch.zeros(1, 12, 12)], dim=1)
    assert torch.equal(intensity_prior(image, blank), blank)


def test_the_published_soft_loss_pays_for_certainty_and_the_proper_one_for_the_share():
    labels = torch.tensor([1, 1, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    shares = [0.5, 2 / 3, 0.95]
    cost = {}
    for variant in ("confidence_weighted", "proper"):
        method = SoftLabels(variant=variant, dice=0, blur_px=0, clip=0)
        logits = [torch.tensor([0, np.log(p / (1 - p))]).float().view(1, 2, 1, 1).expand(1, 2, 4, 4) for p in shares]
        cost[variant] = [method.loss({"logits": value}, labels, 0).total.item() for value in logits]
    assert np.argmin(cost["confidence_weighted"]) == 2
    assert np.argmin(cost["proper"]) == 1
    assert LOG_ZERO < -9
