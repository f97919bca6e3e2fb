"""Distances between the surfaces of two segmentations: HD95, ASSD and NSD, as MONAI defines them.

Shapes: (*S) integer label maps, two or three spatial axes; K classes with 0 the background.

Tools differ by definition; on a nodule of 200 voxels one HD95 is .7 of another. Ours is MONAI's: a surface is the set
of foreground voxels with a background voxel next to them; HD95 is the larger of the two directed 95th percentiles;
ASSD the mean over the voxels of both surfaces together; NSD the share of both surfaces that lies within the tolerance
of the other. (DeepMind's surface-distance weighs surface elements by area instead, medpy takes the 95th percentile of
both directions pooled.)

What is absent from both maps costs nothing (distances 0, NSD 1); what is absent from one is infinitely far (inf, NSD
0). IGNORE in either map is taken out of both, as background.
"""

from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray

from casebook.labels import IGNORE

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Per foreground class, (K-1,): 95 % Hausdorff distance and average symmetric surface distance in the unit of the
    spacing, and normalised surface Dice in [0, 1]."""

    hd95: Floats
    assd: Floats
    nsd: Floats


def surface_distances(
    prediction: Labels, reference: Labels, *, classes: int, spacing: tuple[float, ...], tolerance: float
) -> SurfaceDistances:
    """Distances of each foreground class. ``spacing`` per axis and ``tolerance`` of the NSD are in one unit, mm or
    um: the result's.

    A tolerance worth using is the distance between two annotators.

    Raises:
        ValueError: when the shapes differ, or there is not one spacing per axis.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    if len(spacing) != prediction.ndim:
        raise ValueError(f"{len(spacing)} spacings for {prediction.ndim} axes: give one per axis of the array")
    counted = (prediction != IGNORE) & (reference != IGNORE)
    rows = [
        _of_class((prediction == k) & counted, (reference == k) & counted, spacing, tolerance)
        for k in range(1, classes)
    ]
    hd95, assd, nsd = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return SurfaceDistances(hd95=hd95, assd=assd, nsd=nsd)


def _of_class(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float, float]:
    if not (prediction.any() and reference.any()):
        nothing = not (prediction.any() or reference.any())
        return (0.0, 0.0, 1.0) if nothing else (np.inf, np.inf, 0.0)
    p, r = torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None]
    hd95 = compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(p, r, include_background=True, symmetric=True, spacing=spacing)
    nsd = compute_surface_dice(p, r, class_thresholds=[tolerance], include_background=True, spacing=spacing)
    return float(hd95), float(assd), float(nsd)
