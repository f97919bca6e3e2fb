"""The annotator confusion method as a whole, on pictures small enough to train in seconds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casebook import IGNORE
from rayters.methods import AnnotatorConfusion, sentinel
from rayters.methods.annotator_confusion import AS_PUBLISHED
from rayters.networks.task import Task

TASK = Task(channels=1, classes=2, annotators=4, patch_px=(8, 8))


class Eye(nn.Module):
    """One convolution: features, and logits from them."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 2, 1)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        features = self.features(views[:, 0]).relu()
        return {"logits": self.logits(features), "features": features}


def cohort(count: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy views, the labels of good, over, under and blank, and the truth: discs of several sizes."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    centre = 2.5 + 3 * torch.rand(count, 2, 1, 1, generator=generator)
    distance = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    labels = torch.stack([(distance < radius).long() for radius in (2.0, 3.0, 1.2, -1.0)], dim=1)
    views = (2.0 - distance).clamp(-3, 3)[:, None, None] + 0.1 * torch.randn(count, 1, 1, 8, 8, generator=generator)
    return views, labels, labels[:, 0]


def trained(method: AnnotatorConfusion, labels: Tensor, steps: int = 150) -> nn.Module:
    torch.manual_seed(0)
    views, _, _ = cohort()
    net = method.build(TASK, Eye).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(steps):
        loss = method.loss(net(views, labels), labels, step / steps).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def dice(predicted: Tensor, truth: Tensor) -> float:
    return float(2 * (predicted * truth).sum() / (predicted.sum() + truth.sum()))


def test_the_truth_is_found_where_the_vote_is_wrong_and_every_annotator_is_understood() -> None:
    method = AnnotatorConfusion()
    views, labels, truth = cohort()
    prediction = method.predict(trained(method, labels)(views))
    assert dice((labels.sum(1) > 2).long(), truth) < 0.6
    assert dice(prediction.posterior.argmax(1), truth) > 0.95
    assert prediction.confusion is not None
    for a in range(4):
        hit = prediction.confusion[:, a, 1, 1][truth == 1].mean().item()
        alarm = prediction.confusion[:, a, 1, 0][truth == 0].mean().item()
        assert hit == pytest.approx(labels[:, a][truth == 1].float().mean().item(), abs=0.06)
        assert alarm == pytest.approx(labels[:, a][truth == 0].float().mean().item(), abs=0.06)


def test_one_annotator_per_image_is_enough() -> None:
    method = AnnotatorConfusion()
    views, labels, truth = cohort()
    one = torch.full_like(labels, IGNORE)
    who = torch.arange(len(labels)) % 4
    one[torch.arange(len(labels)), who] = labels[torch.arange(len(labels)), who]
    assert dice(method.predict(trained(method, one, 300)(views)).posterior.argmax(1), truth) > 0.9


@pytest.mark.parametrize("level", ["global", "image", "pixel", "low_rank"])
@pytest.mark.parametrize("likelihood", ["independent", "shared"])
def test_every_level_and_likelihood_has_a_loss_and_confusions(level: str, likelihood: str) -> None:
    method = AnnotatorConfusion(level=level, likelihood=likelihood)  # type: ignore[arg-type]
    views, labels, _ = cohort(4)
    net = method.build(TASK, Eye)
    method.loss(net(views, labels), labels, 0.9).total.backward()
    confusion = method.predict(net.eval()(views)).confusion
    assert confusion is not None
    assert confusion.shape == ((4, 4, 2, 2, 8, 8) if level in ("pixel", "low_rank") else (4, 4, 2, 2))
    assert torch.allclose(confusion.sum(2), torch.ones(()), atol=1e-5)


def test_low_rank_confusions_are_the_same_in_training_and_evaluation() -> None:
    method = AnnotatorConfusion(level="low_rank")
    views, labels, _ = cohort(4)
    net = method.build(TASK, Eye)
    trained_with = net.train()(views, labels)["log_confusion"]
    assert torch.allclose(trained_with.flatten(4), net.eval()(views)["log_confusion"].flatten(4), atol=1e-6)


@pytest.mark.parametrize("level", ["global", "image", "pixel"])
def test_drawing_some_pixels_estimates_the_loss_of_all(level: str) -> None:
    views, labels, _ = cohort(4)
    all_of_them = AnnotatorConfusion(anchor="none", level=level)  # type: ignore[arg-type]
    some = replace(all_of_them, pixels=16)
    torch.manual_seed(0)
    net = some.build(TASK, Eye)
    outputs = [net(views, labels) for _ in range(300)]
    assert outputs[0]["log_confusion"].shape[-1] == (16 if level == "pixel" else 1)
    assert len(outputs[0]["pixels"]) == 16
    drawn = torch.stack([some.loss(each, labels, 0.0).total for each in outputs]).mean()
    net.method = all_of_them
    assert drawn.item() == pytest.approx(all_of_them.loss(net(views, labels), labels, 0.0).total.item(), rel=0.03)


def test_evaluation_leaves_the_statistics_alone() -> None:
    method = AnnotatorConfusion()
    views, labels, _ = cohort(4)
    net = method.build(TASK, Eye)
    net.eval()(views, labels)
    assert not net.looked.any()
    net.train()(views, labels)
    assert net.looked.all()


def test_a_drawn_pixel_index_survives_becoming_a_float() -> None:
    """The training step turns all outputs into float32."""
    method = AnnotatorConfusion(pixels=16)
    views, labels, _ = cohort(4)
    outputs = method.build(TASK, Eye)(views, labels)
    floats = {name: value.float() for name, value in outputs.items()}
    assert torch.equal(method.loss(outputs, labels, 0.5).total, method.loss(floats, labels, 0.5).total)


def test_the_published_form_takes_no_side() -> None:
    views, labels, _ = cohort(4)
    net = AS_PUBLISHED.build(TASK, Eye)
    parts = AS_PUBLISHED.loss(net(views, labels), labels, 0.5).parts
    assert set(parts) == {"likelihood", "trace"}
    assert AS_PUBLISHED.loss(net(views, labels), labels, 0.0).parts["trace"] < 0  # raised in the warm-up, lowered later


def test_the_trace_is_free_in_the_warm_up_then_lowered_ever_more_and_the_anchor_fades_after_its_release() -> None:
    views, labels, _ = cohort(4)
    method = AnnotatorConfusion(warm_up=0.2, ramp=0.4, trace_weight=0.5, release=0.5)
    net = method.build(TASK, Eye)
    outputs = net(views, labels)
    traces = [float(method.loss(outputs, labels, at).parts.get("trace", 0.0)) for at in (0.1, 0.4, 0.6, 1.0)]
    assert traces[0] == 0
    assert traces[1] > 0
    assert traces[1] == pytest.approx(traces[2] / 2)
    assert traces[2] == traces[3]
    anchors = [float(method.loss(outputs, labels, at).parts.get("anchor", 0.0)) for at in (0.5, 0.7, 0.9)]
    assert anchors[0] > 0
    assert anchors[1] == pytest.approx(anchors[0] / 2)
    assert anchors[2] == pytest.approx(0, abs=1e-6)


def test_lowering_the_trace_makes_annotators_less_right() -> None:
    _, labels, _ = cohort()
    fields = {"trace_of": "all", "warm_up": 0.0, "ramp": 0.0, "anchor": "none", "inactive_weight": 0.0}
    traces = []
    for weight in (0.0, 0.5):
        method = AnnotatorConfusion(trace_weight=weight, **fields)  # type: ignore[arg-type]
        confusion = method.predict(trained(method, labels, 60)(cohort()[0])).confusion
        assert confusion is not None
        traces.append(confusion.diagonal(dim1=2, dim2=3).sum(-1).mean().item())
    assert traces[1] < traces[0]


@pytest.mark.parametrize("wrong", [{"release": 1.5}, {"anchor_weight": -1.0}, {"rank": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AnnotatorConfusion(**wrong)  # type: ignore[arg-type]


def test_without_the_good_annotator_the_cohort_is_reported_and_not_guessed() -> None:
    views, labels, _ = cohort()
    for who, state in (([0, 1, 2], "fine"), ([1, 1, 2, 3, 3], "not identifiable")):
        torch.manual_seed(0)
        method, chosen = AnnotatorConfusion(), labels[:, who]
        net = method.build(replace(TASK, annotators=len(who)), Eye).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for step in range(100):
            loss = method.loss(net(views, chosen), chosen, step / 100).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        outputs = net.eval()(views)
        opinion = method.anchor_target(outputs, chosen)
        stands = sentinel.standing(sentinel.tally(outputs["logits"].softmax(1), opinion, chosen), 2)
        assert sentinel.judge(stands, explains=True).state == state
