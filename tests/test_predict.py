"""Prediction tile by tile: what it must equal, and what it must say instead of a wrong result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casebook import Case, write_case
from rayters.gaze import EnsembleGaze, FixedGaze, FoveationGaze
from rayters.gaze.gaze import Gaze
from rayters.inference.maps import most_probable
from rayters.inference.predict import Region, predict_picture, predict_region
from rayters.inference.tiling import Tiling, gaussian, starts, tiles_over
from rayters.methods import AnnotatorConfusion, CoTeaching, MajorityVote, Method
from rayters.networks.backbone import UNet
from rayters.networks.confusion import Level
from rayters.networks.task import Task
from rayters.training.model import Model, build_net
from rayters.training.run import Run


class Brightness(nn.Module):
    """P(foreground) is the logistic function of each pixel's value: what a tile shows beside the pixel plays no part."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        seen = views[:, 0, :1] * self.slope
        return {"logits": torch.cat([torch.zeros_like(seen), seen], 1)}


class LocalMean(nn.Module):
    """The same of the mean over five pixels each way: right in the middle of a tile, and wrong at its zero-padded border."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.mean = (nn.Conv2d if axes == 2 else nn.Conv3d)(1, 1, 5, padding=2, bias=False)
        nn.init.constant_(self.mean.weight, 1 / 5**axes)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        seen = self.mean(views[:, 0, :1])
        return {"logits": torch.cat([torch.zeros_like(seen), seen], 1)}


class Chooser(nn.Module):
    """Looks at the first or at the last of three views, never at the second: which one the mean brightness of the tile says."""

    def __init__(self, *, dark: float, bright: float) -> None:
        """dark, bright: probability of the first view."""
        super().__init__()
        self.first = nn.Parameter(torch.tensor([dark, bright]))

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        seen = views[:, 0, :1]
        first = self.first[(seen.flatten(1).mean(1) > 0).long()]
        weights = torch.stack([first, torch.zeros_like(first), 1 - first], 1)
        return {"logits": torch.cat([torch.zeros_like(seen), seen], 1), "view_log_weights": weights.log()}


def model_of(
    net: nn.Module | None = None,
    *,
    method: Method | None = None,
    look: Gaze | None = None,
    channels: int = 1,
    patch_px: tuple[int, ...] = (16, 16),
    downsampling: int = 1,
    annotators: int = 3,
) -> Model:
    """A model that nobody trained; its net is one of the above, or a small U-Net."""
    torch.manual_seed(0)
    run = Run(
        method=method or MajorityVote(),  # type: ignore[arg-type]
        gaze=look or FixedGaze(),  # type: ignore[arg-type]
        network=UNet(width=4),
        patch_px=patch_px,
        downsampling=downsampling,
    )
    task = Task(
        channels=channels,
        classes=2,
        annotators=annotators,
        patch_px=patch_px,
        view_scales=run.gaze.scales(),
        mean=(128.0,) * channels,
        std=(40.0,) * channels,
    )
    return Model(
        run=run,
        task=task,
        classes=("background", "digit"),
        annotators=tuple("abcdefgh"[:annotators]),
        measured={},
        net=(net or build_net(run, task)).eval(),
    )


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def stored(folder: Path, image: np.ndarray) -> Case:
    axes = image.ndim - 1
    return write_case(
        f"{folder}/case.ome.zarr", image, spacing_um=(1.0,) * axes, classes=("background", "digit"), layers={}
    )


def test_the_last_tile_ends_where_the_case_ends() -> None:
    assert starts(10, 4, 0.25).tolist() == [0, 3, 6]
    assert starts(11, 4, 0.5).tolist() == [0, 2, 4, 6, 7]
    assert starts(3, 4, 0.5).tolist() == [0]
    assert starts(4, 4, 0.9).tolist() == [0]


@pytest.mark.parametrize(("shape", "tile"), [((50, 61), (16, 16)), ((9, 40, 30), (4, 16, 16)), ((7, 100), (16, 16))])
def test_tiles_are_those_of_monai(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    from monai.inferers.utils import _get_scan_interval, dense_patch_slices

    whole = tuple(max(n, t) for n, t in zip(shape, tile, strict=True))
    theirs = dense_patch_slices(whole, tile, _get_scan_interval(whole, tile, len(tile), (0.25,) * len(tile)))
    ours = tiles_over(shape, tile, 0.25, ((0,) * len(shape), shape))
    assert ours.tolist() == [[s.start for s in each] for each in theirs]


def test_a_net_that_looks_at_one_pixel_gives_the_same_tiled_and_whole() -> None:
    image = picture(1, 45, 61)
    whole = 1 / (1 + np.exp(-(image[0].astype(float) - 128) / 40))
    for overlap in (0.0, 0.25, 0.5):
        maps = predict_picture(model_of(Brightness()), image, tiling=Tiling(overlap=overlap))
        np.testing.assert_allclose(maps.posterior[1], whole, atol=1e-6)


@pytest.mark.parametrize(("shape", "tile"), [((96, 80), (32, 32)), ((20, 48, 40), (16, 16, 16))])
def test_seams_are_invisible(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    # At its border each tile is wrong. Without overlap that is seen as a lattice; with overlap its weight is next to nothing.
    axes, image = len(shape), picture(1, *shape)
    model = model_of(LocalMean(axes), patch_px=tile)
    seen = (torch.from_numpy(image)[None, None].float() - 128) / 40
    whole = model.net(seen)["logits"].softmax(1)[0, 1].detach().numpy()
    inner = (slice(4, -4),) * axes  # the border of the case itself is zero-padded in the whole prediction, too

    def worst(overlap: float) -> float:
        maps = predict_picture(model, image, tiling=Tiling(overlap=overlap))
        return float(np.abs(maps.posterior[1] - whole)[inner].max())

    # noise is the worst case: sigma is an eighth of the tile, so its border weighs 0.1 % to 1 % of what its neighbour's middle does
    assert worst(0.0) > 0.1
    assert worst(0.5) < 0.02
    assert worst(0.5) < worst(0.25) < worst(0.0)


@pytest.mark.parametrize("net", [None, LocalMean(2)])
def test_the_result_is_that_of_monai_sliding_windows(net: nn.Module | None) -> None:
    from monai.inferers import sliding_window_inference

    image, model = picture(1, 70, 53), model_of(net)
    ours = predict_picture(model, image, tiling=Tiling(overlap=0.5, batch_size=3)).posterior
    with torch.no_grad():
        theirs = sliding_window_inference(
            (torch.from_numpy(image)[None].float() - 128) / 40,
            (16, 16),
            3,
            lambda x: model.net(x[:, None])["logits"].softmax(1),
            overlap=0.5,
            mode="gaussian",
        )
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 150, 140), (3, 40, 37), (1, 20, 70, 50)])
@pytest.mark.parametrize("look", [FixedGaze(), FixedGaze(field_of_view=2.0), FoveationGaze()], ids=str)
def test_a_picture_and_a_case_of_the_same_pixels_give_the_same_maps(
    shape: tuple[int, ...], look: Gaze, tmp_path: Path
) -> None:
    image = picture(*shape)
    axes = len(shape) - 1
    model = model_of(method=AnnotatorConfusion(), look=look, channels=shape[0], patch_px=(8, 16, 16)[-axes:])
    one, other = predict_picture(model, image), predict_region(model, stored(tmp_path, image))
    for name in ("posterior", "annotators", "reliability", "gaze", "gaze_uncertainty", "labels", "uncertainty"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or np.array_equal(a, b), name


@pytest.mark.parametrize("downsampling", [1, 2])
def test_pieces_put_together_are_the_whole(downsampling: int, tmp_path: Path) -> None:
    model = model_of(method=AnnotatorConfusion(), look=FoveationGaze(), downsampling=downsampling)
    case = stored(tmp_path, picture(1, 90, 111))
    whole = predict_region(model, case)
    assert whole.posterior.shape[1:] == (-(-90 // downsampling), -(-111 // downsampling))
    for top, left, height, width in ((0, 0, 64, 64), (0, 64, 64, 47), (64, 0, 26, 64), (64, 64, 26, 47)):
        piece = predict_region(model, case, Region(origin_px0=(top, left), size_px0=(height, width)))
        here = tuple(slice(o // downsampling, -(-(o + s) // downsampling)) for o, s in ((top, height), (left, width)))
        np.testing.assert_allclose(piece.posterior, whole.posterior[(slice(None), *here)], atol=1e-5)
        assert piece.annotators is not None
        assert whole.annotators is not None
        np.testing.assert_allclose(piece.annotators, whole.annotators[(slice(None), slice(None), *here)], atol=1e-5)


def halves() -> np.ndarray:
    """The left half dark, the right half bright, each of two tiles."""
    return np.repeat(np.array([[[0, 255]]], np.uint8), 32, axis=2).repeat(32, axis=1)


def test_the_map_of_the_gaze_shows_fields_of_view_that_were_chosen_where_they_were() -> None:
    model = model_of(Chooser(dark=0.6, bright=0.3), look=FoveationGaze())
    apart = predict_picture(model, halves(), tiling=Tiling(overlap=0.0))
    assert (apart.gaze[:, :32] == 1).all()
    assert (apart.gaze[:, 32:] == 4).all()
    by_hand = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(3) for p in (0.6, 0.3)]
    np.testing.assert_allclose(apart.gaze_uncertainty[5, [5, 60]], by_hand, atol=1e-5)
    over = predict_picture(model, halves(), tiling=Tiling(overlap=0.5))
    assert set(np.unique(over.gaze)) == {1, 4}  # and nothing in between where tiles overlap
    np.testing.assert_allclose(over.views.sum(0), 1, atol=1e-5)


def test_a_choice_that_is_not_made_is_said_to_be_open() -> None:
    maps = predict_picture(model_of(look=FoveationGaze()), picture(1, 20, 20))  # untrained: every view alike
    assert (maps.gaze == 1).all()
    np.testing.assert_allclose(maps.gaze_uncertainty, 1, atol=1e-5)


@pytest.mark.parametrize("look", [FixedGaze(), EnsembleGaze()], ids=str)
def test_a_gaze_that_does_not_choose_has_no_map_of_it(look: Gaze) -> None:
    maps = predict_picture(model_of(look=look), picture(1, 20, 20))
    assert maps.gaze is None
    assert maps.gaze_uncertainty is None


def test_an_ensembles_gaze_is_that_of_the_mean_choice() -> None:
    first, second = (
        model_of(Chooser(dark=dark, bright=bright), look=FoveationGaze()) for dark, bright in ((0.9, 0.4), (0.4, 0.1))
    )
    both = predict_picture((first, second), halves(), tiling=Tiling(overlap=0.0))
    np.testing.assert_allclose(both.views[0, 0, [0, 63]], [0.65, 0.25], atol=1e-6)
    assert both.gaze[0, [0, 63]].tolist() == [1, 4]
    other = model_of(Chooser(dark=0.9, bright=0.1), look=FoveationGaze(fields_of_view=(1.0, 2.0, 3.0)))
    assert predict_picture((first, other), halves()).gaze is None  # their views are not the same


def test_where_two_eyes_look_is_the_mean_of_both() -> None:
    model = model_of(method=CoTeaching(), look=FoveationGaze())
    with torch.no_grad():
        model.net.eye.foveate.layers[-1].bias[0], model.net.peer.foveate.layers[-1].bias[2] = 9, 8
    maps = predict_picture(model, picture(1, 20, 20))
    np.testing.assert_allclose(maps.views[:, 0, 0], [0.5, 0, 0.5], atol=0.001)
    assert (maps.gaze == 1).all()


@pytest.mark.parametrize("level", ["global", "image", "pixel", "low_rank"])
def test_what_an_annotator_draws_is_the_confusion_applied_to_the_posterior(level: Level) -> None:
    model = model_of(method=AnnotatorConfusion(level=level))
    maps = predict_picture(model, picture(1, 16, 16), tiling=Tiling(confusion=True))
    assert maps.confusion is not None
    assert maps.annotators is not None
    np.testing.assert_allclose(
        np.einsum("aij...,j...->ai...", maps.confusion, maps.posterior), maps.annotators, atol=1e-5
    )
    np.testing.assert_allclose(maps.confusion.sum(1), 1, atol=1e-4)


def test_flips_make_the_prediction_of_a_mirrored_picture_the_mirrored_prediction() -> None:
    image, model = picture(1, 32, 32), model_of()
    plain, mirrored = (predict_picture(model, i, tiling=Tiling(overlap=0.5)) for i in (image, image[..., ::-1].copy()))
    assert np.abs(plain.posterior - mirrored.posterior[..., ::-1]).max() > 1e-3
    flips = Tiling(overlap=0.5, flips=True)
    plain, mirrored = (predict_picture(model, i, tiling=flips) for i in (image, image[..., ::-1].copy()))
    np.testing.assert_allclose(plain.posterior, mirrored.posterior[..., ::-1], atol=1e-5)


def test_an_ensemble_believes_the_mean_of_its_members() -> None:
    image, first, second = picture(1, 20, 20), model_of(Brightness()), model_of()
    both = predict_picture((first, second), image)
    each = [predict_picture(model, image).posterior for model in (first, second)]
    np.testing.assert_allclose(both.posterior, np.mean(each, axis=0), atol=1e-6)


def test_of_equally_probable_classes_the_lowest_is_the_label() -> None:
    posterior = np.array([[0.4, 0.2, 0.1], [0.4, 0.4, 0.1], [0.2, 0.4, 0.8]], dtype=np.float32)
    assert most_probable(posterior).tolist() == [0, 1, 2]
    many = np.random.default_rng(0).random((7, 40, 30), dtype=np.float32).round(1)
    assert (most_probable(many) == many.argmax(axis=0)).all()


def test_uncertainty_is_the_entropy_over_that_of_guessing() -> None:
    maps = predict_picture(model_of(Brightness()), np.array([[[128, 0, 255]]], np.float32) * 1)
    assert maps.uncertainty[0, 0] == pytest.approx(1)
    assert maps.uncertainty[0, 1] == pytest.approx(maps.uncertainty[0, 2], abs=0.02)
    assert maps.labels.tolist() == [[0, 0, 1]]


def test_empty_glass_is_background_and_is_not_looked_at() -> None:
    image = np.full((3, 300, 300), 240, np.uint8)
    image[1, 40:90, 40:90] = 100
    model = model_of(Brightness(), channels=3)
    maps = predict_picture(model, image, tiling=Tiling(skip_glass=True))
    assert maps.predicted[40:90, 40:90].all()
    assert maps.predicted.mean() < 0.15
    assert (maps.labels[~maps.predicted] == 0).all()
    assert (maps.uncertainty[~maps.predicted] == 0).all()
    chosen = predict_picture(model_of(look=FoveationGaze(), channels=3), image, tiling=Tiling(skip_glass=True))
    assert ((chosen.gaze > 0) == chosen.predicted).all()
    plain = predict_picture(model, image)
    np.testing.assert_allclose(maps.posterior[:, 45:80, 45:80], plain.posterior[:, 45:80, 45:80], atol=1e-6)


@pytest.mark.parametrize("method", [MajorityVote(), AnnotatorConfusion()], ids=str)
def test_a_slide_of_nothing_but_glass_is_background_everywhere(method: Method) -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (3, 200, 200))
    maps = predict_picture(
        model_of(method=method, channels=3), (240 + noise).astype(np.uint8), tiling=Tiling(skip_glass=True)
    )
    assert not maps.predicted.any()
    assert not maps.labels.any()


def test_a_slide_of_nothing_but_tissue_is_looked_at_everywhere() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (3, 200, 200))
    maps = predict_picture(model_of(channels=3), (120 + noise).astype(np.uint8), tiling=Tiling(skip_glass=True))
    assert maps.predicted.all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((3, 20, 20), np.uint8), "3 channels, the model was trained on 1"),
        (np.zeros((1, 4, 20, 20), np.uint8), "3 spatial axes, the model was trained on 2"),
        (np.zeros((20, 20), np.uint8), r"\(C, Y, X\)"),
        (np.array([[[1.0, np.nan], [np.inf, 0.0]]]), r"2 pixels are NaN or infinite, the first at \(0, 0, 1\)"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused_in_a_sentence(image: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        predict_picture(model_of(Brightness()), image)


def test_an_ensemble_of_models_that_differ_is_refused() -> None:
    with pytest.raises(ValueError, match="members of an ensemble differ"):
        predict_picture((model_of(), model_of(channels=3)), picture(1, 20, 20))


def test_a_region_outside_of_the_case_is_refused(tmp_path: Path) -> None:
    case = stored(tmp_path, picture(1, 50, 50))
    with pytest.raises(ValueError, match="does not lie in a case"):
        predict_region(model_of(), case, Region(origin_px0=(40, 0), size_px0=(20, 20)))


def test_weights_are_greatest_in_the_middle_and_never_zero() -> None:
    weights = gaussian((16, 16))
    assert float(weights.min()) == pytest.approx(1e-3)
    assert weights.argmax().item() in (7 * 16 + 7, 7 * 16 + 8, 8 * 16 + 7, 8 * 16 + 8)
