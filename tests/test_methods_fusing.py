"""Methods that settle on one target per pixel: STAPLE, Dawid-Skene, one or a random annotator, soft labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.annotators import fuse
from rayters.annotators.simulate import draw_all
from rayters.methods import (
    DawidSkene,
    KnownConfusion,
    OneAnnotator,
    RandomAnnotator,
    RobustLoss,
    SoftLabels,
    Staple,
    robust_losses,
)
from rayters.methods.known_confusion import Matrix
from rayters.methods.mixture_of_products import posterior_of_truth, written_where
from rayters.methods.random_annotator import drawn_annotator
from rayters.methods.robust_losses import LOG_ZERO
from rayters.methods.smoothing import blur, geometric_mix, intensity_prior
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


def discs(seed: int, count: int = 8, size: int = 24) -> tuple[np.ndarray, Tensor]:
    """Discs (N, Y, X) and what the five simulated annotators draw, (N, 5, Y, X)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    cy, cx = (rng.uniform(8, 16, (count, 1, 1)) for _ in range(2))
    truth = ((y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 5, (count, 1, 1)) ** 2).astype(np.uint8)
    return truth, torch.from_numpy(np.swapaxes(draw_all(truth), 0, 1).astype(np.int64))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def only(labels: Tensor, who: Tensor) -> Tensor:
    """The labels (N, A, *S) of one annotator of each picture, who (N,); the others did not look."""
    alone, n = torch.full_like(labels, IGNORE), torch.arange(len(labels))
    alone[n, who] = labels[n, who]
    return alone


@pytest.mark.parametrize("pictures", [8, 2], ids=["8 pictures a step", "2 pictures a step"])
@pytest.mark.parametrize("memory", [0.9, 0.97])
def test_with_one_label_per_pixel_dawid_skene_is_no_worse_than_the_vote(memory, pictures):
    net = DawidSkene(memory=memory).build(Task(channels=1, classes=2, annotators=5, patch_px=(24, 24)), Still).train()
    rng = np.random.default_rng(0)
    for step in range(300):
        drawn = discs(step, pictures)[1]
        outputs = net(
            torch.zeros(len(drawn), 1, 1, 24, 24), only(drawn, torch.from_numpy(rng.integers(5, size=pictures)))
        )
    truth, drawn = discs(10_000, 100)
    confusion, prior = outputs["confusion"][None], outputs["prior"][None]
    # What a network learns from one annotator at a time: the mean, over annotators, of the posterior given his label.
    learnt = sum(posterior_of_truth(only(drawn, torch.full((100,), a)), confusion, prior) for a in range(5)).argmax(1)
    vote = (drawn.sum(1) > 2).numpy()
    assert dice(learnt.numpy(), truth) >= dice(vote, truth) > 0.5


def test_the_prior_of_dawid_skene_is_the_share_of_each_class():
    net = DawidSkene(memory=0.9).build(Task(channels=1, classes=3, annotators=2, patch_px=(10, 10)), lambda: Still(3))
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10).view(1, 1, 10, 10).expand(1, 2, -1, -1)
    for _ in range(100):
        outputs = net.train()(torch.zeros(1, 1, 1, 10, 10), labels)
    assert outputs["prior"].tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    assert torch.allclose(outputs["confusion"], torch.eye(3).expand(2, -1, -1), atol=0.01)


def test_dawid_skene_counts_in_full_precision_under_autocast():
    task = Task(channels=1, classes=2, annotators=5, patch_px=(64, 64))
    lower, full = (DawidSkene().build(task, Still).train() for _ in range(2))
    labels, views = torch.from_numpy(crowd()[1]).long()[None], torch.zeros(1, 1, 1, 64, 64)
    full(views, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower(views, labels)
    assert torch.equal(lower.counts, full.counts)


def circle(right: float, next_: float) -> Matrix:
    """One who writes class j, the class after it, or the one before it: not symmetric, yet its transpose is a confusion too."""
    before = round(1 - right - next_, 6)
    return ((right, before, next_), (next_, right, before), (before, next_, right))


STYLES = (circle(0.7, 0.25), circle(0.6, 0.35), circle(0.8, 0.2))
SHARES = (0.2, 0.5, 0.3)  # of the three classes


def written_by(styles: tuple[Matrix, ...], pixels: int = 100) -> Tensor:
    """What each wrote on a picture of ``pixels`` x ``pixels``, (1, A, Y, X): truths drawn by ``SHARES``, labels by the styles."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, p=SHARES, size=(pixels, pixels))
    heaps = [np.cumsum(style, axis=0)[:, truth] for style in styles]
    return torch.from_numpy(np.stack([(rng.random(truth.shape) > heap[:2]).sum(0) for heap in heaps]))[None]


def shares_found(method: KnownConfusion, labels: Tensor) -> list[float]:
    net = method.build(Task(channels=1, classes=3, annotators=labels.shape[1], patch_px=(100, 100)), lambda: Still(3))
    optimizer, views = torch.optim.Adam(net.parameters(), lr=0.1), torch.zeros(1, 1, 1, 100, 100)
    for _ in range(80):
        loss = method.loss(net(views), labels, 0).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.predict(net(views)).posterior[0, :, 0, 0].tolist()


def test_the_truths_shares_are_found_through_known_confusions_and_not_through_their_transposes():
    labels = written_by(STYLES)
    transposed = tuple(tuple(zip(*style, strict=True)) for style in STYLES)
    assert shares_found(KnownConfusion(confusions=STYLES), labels) == pytest.approx(SHARES, abs=0.03)
    wrong = shares_found(KnownConfusion(confusions=transposed), labels)
    assert np.abs(np.subtract(wrong, SHARES)).max() > 0.1


def test_planted_confusions_of_three_classes_are_found_within_five_hundredths_and_not_transposed():
    labels = written_by((*STYLES, circle(0.9, 0.05)))
    method = DawidSkene(memory=0.9)
    net = method.build(Task(channels=1, classes=3, annotators=4, patch_px=(100, 100)), lambda: Still(3)).train()
    for _ in range(200):
        outputs = net(torch.zeros(1, 1, 1, 100, 100), labels)
    found, planted = method.predict(outputs).confusion, torch.tensor((*STYLES, circle(0.9, 0.05)))
    assert (found - planted).abs().max() < 0.05
    assert (found - planted.transpose(1, 2)).abs().max() > 0.1
    assert outputs["prior"].tolist() == pytest.approx(SHARES, abs=0.05)


@pytest.mark.parametrize(
    ("confusions", "complaint"),
    [
        ((((0.9, 0.2), (0.1, 0.8)), circle(0.8, 0.1)), "annotator 1.*2 x 2"),
        ((((0.9, 0.2, 0.0), (0.1, 0.8, 1.0)),), "2 x 2"),
        ((((0.9,), (0.1, 0.8)),), "2 x 2"),
        (((),), "0 x 0"),
        ((((1.2, 0.0), (-0.2, 1.0)),), "no probability"),
        ((((0.9, 0.1), (0.2, 0.8)),), "columns of annotator 0"),  # rows sum to one: transposed
    ],
)
def test_what_is_no_confusion_is_refused(confusions, complaint):
    with pytest.raises(ValueError, match=complaint):
        KnownConfusion(confusions=confusions)


def test_known_confusions_of_another_cohort_are_refused():
    task = Task(channels=1, classes=2, annotators=3, patch_px=(4, 4))
    for classes, annotators in ((3, 3), (2, 2)):
        perfect = tuple(tuple(map(float, row)) for row in np.eye(classes))
        with pytest.raises(ValueError, match=f"{classes} classes" if classes == 3 else "2 confusions"):
            KnownConfusion(confusions=(perfect,) * annotators).build(task, Still)
    with pytest.raises(ValueError, match="smoothing"):
        KnownConfusion(smoothing=-0.1)


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


def test_symmetric_cross_entropy_has_its_published_weights_until_others_are_given():
    logits, labels = torch.tensor([0.3, -0.4]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1).long()
    log_p = logits.log_softmax(1)
    q = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    found = [
        method.loss({"logits": logits}, labels, 0).total.item()
        for method in (RobustLoss(loss_name="sce"), RobustLoss(loss_name="sce", alpha=2.0, beta=0.5))
    ]
    ce, rce = robust_losses.ce(log_p, q).item(), robust_losses.rce(log_p, q).item()
    assert found == pytest.approx([0.1 * ce + rce, 2 * ce + 0.5 * rce])


def test_soft_labels_are_the_weighted_share():
    labels = torch.tensor([1, 0, IGNORE, 1]).view(1, 4, 1, 1)
    method = SoftLabels(blur_px=0, clip=0, annotator_weights=(3.0, 1.0, 5.0, 0.0))
    assert method.target(labels, 2).flatten().tolist() == [0.25, 0.75]


def test_nothing_lies_outside_the_region_and_the_region_has_no_vote():
    labels = torch.tensor([[[1, 1, 1]], [[1, 0, IGNORE]]])[None]  # one annotator, one region
    found = SoftLabels(blur_px=0, clip=0, region=1).target(labels, 2)
    assert found[0, 1].flatten().tolist() == [1, 0, 1]


def test_a_mix_of_target_and_prior_is_geometric():
    target = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.0, 0.0], [0.3, 0.7]]).T[None]
    prior = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.0, 0.0]]).T[None]
    assert torch.allclose(geometric_mix(target, prior, 1.0), target)
    half = geometric_mix(target, prior, 0.5)[0, 1]
    odds = np.sqrt(0.8 / 0.2 * 0.1 / 0.9)  # of the two, multiplied to the power of their trusts
    assert half.tolist() == pytest.approx([odds / (1 + odds), 2 / 3, 0.0, 0.7])  # nobody looked; no prior
    assert geometric_mix(target, prior, 0.0)[0, 1, :2].tolist() == pytest.approx([0.1, 0.8])


def test_a_prior_forbids_nothing_that_the_annotators_are_sure_of():
    sure, never = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]])
    assert geometric_mix(sure, never, 0.7)[0, 1].item() > 0.97
    assert geometric_mix(sure, never, 0.3)[0, 1].item() < 0.03


def test_an_anatomical_prior_layer_tempers_the_annotators_and_has_no_vote():
    labels = torch.tensor([[[1, 1, 1]], [[0, 0, 1]], [[1, 0, IGNORE]]])[
        None
    ]  # two annotators, and where it usually lies
    method = SoftLabels(blur_px=0, clip=0, prior_layer=2, prior_blur_px=0, prior_trust=0.5)
    found = method.target(labels, 2)[0, 1].flatten()
    # Vote odds 1, prior odds 1e4 or 1e-4 (as far as a prior goes), each to the power of a half; and no prior at the last pixel.
    assert found.tolist() == pytest.approx([100 / 101, 1 / 101, 1.0], abs=1e-4)
    assert replace(method, prior_trust=1.0).target(labels, 2)[0, 1].flatten().tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert method.needs_identity


def test_an_anatomical_prior_is_blurred_by_a_width_of_its_own():
    labels = torch.zeros(1, 3, 1, 41).long()
    labels[:, 0], labels[:, 2, :, 20:] = 1, 1  # one annotator draws everything, one nothing; the atlas the right half
    narrow, wide = (
        SoftLabels(blur_px=0, clip=0, prior_layer=2, prior_blur_px=width, prior_trust=0.5).target(labels, 2)[0, 1, 0]
        for width in (1.0, 6.0)
    )
    assert (
        narrow[12] < 0.02 < wide[12] < 0.5
    )  # odds of a vote that is split are those of the prior, to the power of a half
    assert (wide.diff()[8:32] > 0).all()


def test_a_prior_layer_takes_the_place_of_how_the_patch_looks():
    task = Task(channels=1, classes=2, annotators=3, patch_px=(6, 6))
    views = torch.randn(1, 1, 1, 6, 6)
    assert "image" in SoftLabels().build(task, Still)(views)
    assert "image" not in SoftLabels(prior_layer=2).build(task, Still)(views)


@pytest.mark.parametrize(
    "wrong",
    [
        {"annotator_weights": (0.0, 0.0)},
        {"annotator_weights": (1.0, -0.5)},
        {"prior_blur_px": -1.0},
        {"prior_trust": 1.5},
        {"clip": 0.5},
    ],
)
def test_soft_labels_refuse_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SoftLabels(**wrong)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (SoftLabels(annotator_weights=(1.0,)), "1 annotator_weights for 2"),
        (SoftLabels(region=2), "region=2"),
        (SoftLabels(prior_layer=2), "prior_layer=2"),
        (SoftLabels(region=0, prior_layer=1), "no annotator has a vote"),
        (SoftLabels(annotator_weights=(1.0, 0.0), region=0), "no annotator has a vote"),
    ],
)
def test_soft_labels_refuse_a_cohort_without_the_layers_or_votes_they_need(method, complaint):
    with pytest.raises(ValueError, match=complaint):
        method.build(Task(channels=1, classes=2, annotators=2, patch_px=(4, 4)), Still)


def test_a_clipped_soft_label_halves_the_reverse_cross_entropy():
    log_p = torch.tensor([0.4, 0.6]).log().view(1, 2, 1)
    hard = torch.tensor([0.0, 1.0]).view(1, 2, 1)
    clipped = torch.tensor([SoftLabels().clip, 1 - SoftLabels().clip]).view(1, 2, 1)
    ratio = robust_losses.rce(log_p, clipped) / robust_losses.rce(log_p, hard)
    assert ratio.item() == pytest.approx(0.5, abs=0.01)


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


def test_a_slice_of_one_pixel_is_blurred_as_a_picture():
    share = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    picture = torch.cat([1 - share, share], dim=1)
    assert torch.equal(blur(picture.unsqueeze(2), 1.5), blur(picture, 1.5).unsqueeze(2))


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
