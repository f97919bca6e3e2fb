"""Surfaces, and sets of segmentations."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from casebook.labels import IGNORE
from rayters.annotators.fuse import mean_labels
from rayters.metrics import calibration, confusion_error, distribution, overlap, surface
from rayters.metrics.distribution import (
    dice_match,
    dice_max,
    dice_soft,
    ged_squared,
    pairwise_overlap,
    sample_diversity,
)
from rayters.metrics.overlap import dice, iou
from rayters.metrics.surface import surface_distances

DATA = Path(__file__).parents[2] / "shared/data"
REFERENCE = DATA / "reference/metrics.json"


def square(at: int, size: int = 4) -> np.ndarray:
    mask = np.zeros((24, 24), dtype=np.uint8)
    mask[at : at + size, at : at + size] = 1
    return mask


def random_maps(n: int, seed: int, classes: int = 3) -> np.ndarray:
    maps = np.random.default_rng(seed).integers(0, classes, (n, 10, 10)).astype(np.uint8)
    maps[:, 0] = IGNORE
    return maps


def test_a_displaced_pixel_is_as_far_as_it_was_displaced():
    a, b = np.zeros((2, 9, 9), dtype=np.uint8)
    a[2, 2], b[2, 5] = 1, 1
    found = surface_distances(a, b, classes=2, spacing=(1.0, 0.5), tolerance=1.0)
    assert found.hd95.tolist() == found.assd.tolist() == [1.5]
    assert found.nsd.tolist() == [0]
    assert surface_distances(a, b, classes=2, spacing=(1.0, 0.5), tolerance=1.5).nsd.tolist() == [1]


def test_nothing_against_nothing_costs_nothing_and_against_something_everything():
    same = surface_distances(square(3, 0), square(3, 0), classes=2, spacing=(1, 1), tolerance=1)
    assert (same.hd95[0], same.assd[0], same.nsd[0]) == (0, 0, 1)
    lost = surface_distances(square(3, 0), square(3), classes=2, spacing=(1, 1), tolerance=1)
    assert (lost.hd95[0], lost.assd[0], lost.nsd[0]) == (np.inf, np.inf, 0)


def test_what_lies_under_ignore_has_no_surface():
    reference, prediction = square(3), square(3)
    reference[15:] = IGNORE
    prediction[20, 20] = 1
    assert surface_distances(prediction, reference, classes=2, spacing=(1, 1), tolerance=1).hd95[0] == 0


def test_a_spacing_per_axis_is_asked_for():
    with pytest.raises(ValueError, match="2 axes"):
        surface_distances(square(3), square(3), classes=2, spacing=(1, 1, 1), tolerance=1)


def read(case: str, annotator: str) -> np.ndarray:
    """(*S) uint8 as the published figures were computed: (x, y, z) of a volume, (row, column) of a picture."""
    if "headneck" in case:  # one file per organ
        import SimpleITK as sitk  # noqa: N813

        patient, organ = (DATA / case).parent, Path(case).name
        plane = sitk.GetArrayFromImage(sitk.ReadImage(str(patient / annotator / f"{organ}.nrrd"))).T
    elif "chase" in case:
        from PIL import Image

        plane = np.asarray(Image.open(DATA / f"{case}_{annotator}.png").convert("L"))
    else:
        import nibabel

        plane = np.asarray(nibabel.load(DATA / case / f"{annotator}.nii.gz").dataobj)
    return (plane > 0).astype(np.uint8)


def both_and_a_margin(a: np.ndarray, b: np.ndarray) -> tuple[slice, ...]:
    """The box around all that either drew, one voxel of background with it: more of that changes no distance, and costs minutes."""
    return tuple(
        slice(max(0, int(where.min()) - 1), int(where.max()) + 2)
        for where in (
            (a | b).any(axis=tuple(o for o in range(a.ndim) if o != axis)).nonzero()[0] for axis in range(a.ndim)
        )
    )


PAIRS = json.loads(REFERENCE.read_text())["pairs"] if REFERENCE.exists() else {}


def test_all_published_pairs_are_looked_at(shared: Path):
    assert len(PAIRS) == 67
    assert {name.split("/")[0] for name in PAIRS} == {"A-lidc", "A-headneck", "A-chase"}


@pytest.mark.parametrize("name", PAIRS)
def test_the_distances_between_real_readers_are_the_published_ones(name: str, shared: Path):
    case, gt, _, _, prediction, _ = name.removeprefix("A-").split(" ")
    expected, spacing = PAIRS[name], tuple(PAIRS[name]["spacing_in_array_order"])
    truth, drawn = read(case, gt), read(case, prediction)
    assert [int(truth.sum()), int(drawn.sum())] == expected["voxels"]
    box = both_and_a_margin(truth, drawn)
    found = surface_distances(drawn[box], truth[box], classes=2, spacing=spacing, tolerance=1.0)
    assert found.hd95[0] == pytest.approx(expected["monai"]["hd95"], abs=1e-5)
    assert found.assd[0] == pytest.approx(expected["monai"]["assd"], abs=1e-5)
    assert found.nsd[0] == pytest.approx(expected["monai"]["nsd_1mm"], abs=1e-5)
    assert dice(drawn, truth, classes=2)[0] == pytest.approx(expected["medpy"]["dc"], abs=1e-6)
    assert iou(drawn, truth, classes=2)[0] == pytest.approx(expected["medpy"]["jc"], abs=1e-6)


def test_identical_sets_are_at_distance_zero():
    maps = random_maps(4, 0)
    assert ged_squared(maps, maps, classes=3) == pytest.approx(0, abs=1e-12)
    assert ged_squared(maps, maps[::-1], classes=3) == pytest.approx(0, abs=1e-12)


def test_ged_by_hand():
    """One sample, disjoint from both of two equal annotators: 2 * 1 - 0 - 0."""
    annotators = np.stack([square(3), square(3)])
    assert ged_squared(square(12)[None], annotators, classes=2) == 2
    two = np.stack([square(3), square(12)])
    assert ged_squared(two, annotators, classes=2, statistic="V") == pytest.approx(2 * 0.5 - 0.5 - 0)
    assert ged_squared(two, annotators, classes=2, statistic="U") == pytest.approx(2 * 0.5 - 1 - 0)


@pytest.mark.parametrize("seed", range(20))
def test_v_ged_is_never_negative_where_all_look_at_the_same_pixels(seed: int):
    samples, annotators = random_maps(2 + seed % 3, seed), random_maps(1 + seed % 4, seed + 100)
    assert ged_squared(samples, annotators, classes=3) >= 0


def test_v_ged_may_be_negative_where_maps_look_at_different_pixels():
    nowhere_else = np.array([[IGNORE, 0, IGNORE]], dtype=np.uint8)
    annotators = np.array([[0, IGNORE, 0], [IGNORE, 0, 1]], dtype=np.uint8)  # differ where the sample did not look
    assert ged_squared(nowhere_else, annotators, classes=2) == pytest.approx(2 * 0 - 0 - 0.5)


def test_the_u_statistic_refuses_a_single_map():
    with pytest.raises(ValueError, match="different maps"):
        ged_squared(square(3)[None], np.stack([square(3)] * 2), classes=2, statistic="U")


def test_two_empty_maps_are_alike():
    nothing = np.zeros((2, 5, 5), dtype=np.uint8)
    assert ged_squared(nothing, nothing, classes=2) == 0
    assert dice_match(nothing, nothing, classes=2) == 1


def test_set_metrics_leave_their_inputs_alone_and_do_not_care_for_order():
    samples, annotators = random_maps(5, 1), random_maps(3, 2)
    kept = samples.copy(), annotators.copy()
    for metric in (ged_squared, dice_match, lambda a, b, classes: dice_max(a, b, classes=classes)[0]):
        assert metric(samples, annotators, classes=3) == pytest.approx(
            metric(samples[::-1], annotators[::-1], classes=3)
        )
    assert np.array_equal(samples, kept[0])
    assert np.array_equal(annotators, kept[1])


def test_pairs_are_what_overlap_computes_one_by_one():
    samples, annotators = random_maps(3, 1), random_maps(2, 2)
    annotators[0, 5] = IGNORE
    found_iou, found_dice = pairwise_overlap(samples, annotators, classes=3)
    for n, s in enumerate(samples):
        for m, y in enumerate(annotators):
            assert found_dice[n, m] == pytest.approx(dice(s, y, classes=3).mean())
            assert found_iou[n, m] == pytest.approx(iou(s, y, classes=3).mean())


def test_the_best_sample_of_each_and_the_best_assignment_differ():
    samples, annotators = np.stack([square(3), square(12)]), np.stack([square(3), square(3)])
    assert dice_max(samples, annotators, classes=2) == (1, 0.5)
    assert dice_match(samples, annotators, classes=2) == 0.5


def test_diversity_of_copies_is_none_and_of_strangers_full():
    assert sample_diversity(np.stack([square(3)] * 3), classes=2) == 0
    assert sample_diversity(np.stack([square(3), square(12)]), classes=2) == 1


def test_dice_soft_of_the_mean_label_with_itself_is_one_and_cuts_at_five_heights():
    soft = mean_labels(np.stack([square(3), square(3, 6), square(3, 6)]), classes=2)
    assert dice_soft(soft, soft).tolist() == [1]
    hard = mean_labels(square(3, 6)[None], classes=2)
    inner = 2 * 16 / (16 + 36)
    assert dice_soft(hard, soft).tolist() == [
        pytest.approx((3 + 2 * inner) / 5)
    ]  # .1 .3 .5 give the large square, .7 .9 the small


def public_functions() -> dict[str, Callable]:
    """Every function that a module of metrics offers, by its name."""
    modules = (calibration, confusion_error, distribution, overlap, surface)
    return {
        name: function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


def inputs() -> dict[str, tuple[tuple, dict]]:
    """Arguments for each of them; maps hold three classes and IGNORE."""
    a, b, rng = random_maps(3, 1), random_maps(3, 2), np.random.default_rng(3)
    posterior, known = rng.dirichlet(np.ones(3), (10, 10)).transpose(2, 0, 1), {"classes": 3}
    matrices = rng.dirichlet(np.ones(3), (2, 4, 3)).transpose(0, 1, 3, 2)
    one, two, two_sets = (a[0], b[0]), ([(a[0], b[0]), (a[1], b[1])],), (a, b)
    distances = known | {"spacing": (1.0, 2.0), "tolerance": 1.0}
    return {
        "calibration": ((posterior, a[0]), {}),
        "count_confusion": ((a[:, None], b), known),
        "sum_estimate": ((rng.random((3, 2, 3, 3, 10, 10)), b), {}),
        "confusion_rmse": ((matrices[0], matrices[1]), {}),
        "reliability": ((matrices[0],), {}),
        "reliability_rank_correlation": ((matrices[0], matrices[1]), {}),
        "rank_correlation": ((rng.random(4), rng.random(4)), {}),
        **dict.fromkeys(("pairwise_overlap", "ged_squared", "dice_max", "dice_match"), (two_sets, known)),
        "sample_diversity": ((a,), known),
        "dice_soft": ((posterior, mean_labels(a, classes=3)), {}),
        **dict.fromkeys(("overlap_counts", "dice", "iou"), (one, known)),
        **{name: ((np.array([[3, 1, 0], [0, 0, 0]]),), {}) for name in ("dice_of", "iou_of")},
        **dict.fromkeys(("dice_per_image", "dice_pooled"), (two, known)),
        "dice_per_annotator": ((a[0], b), known),
        "surface_distances": (one, distances),
    }


def test_no_metric_changes_what_it_is_given():
    functions, given = public_functions(), inputs()
    assert set(functions) == set(given)  # whoever adds a metric adds it here
    for name, (arguments, named) in given.items():
        before = repr_of(arguments)
        functions[name](*arguments, **named)
        assert repr_of(arguments) == before, name


def repr_of(value) -> object:
    """Something that can be compared, and changes with any byte."""
    return value.tobytes() if isinstance(value, np.ndarray) else [repr_of(part) for part in value]
