"""Where there is tissue: the rest of a slide is empty glass, and half of a slide or more is that.

Otsu's threshold of the brightness of a coarse level; Otsu, IEEE Trans. SMC 9, 1979, as scikit-image implements it. Otsu always cuts
in two, also where there is nothing to cut: a slide that is all glass, or all tissue. Then brightness itself decides.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter

from rayters.patches.read import HasPixels

LONGEST_PX = 2048  # of the level that the mask is made from
CONTRAST = 0.06  # tissue is darker than glass by this share of the range, at least
GLASS = 0.7  # without contrast, all is glass if brighter than this share of the range


@dataclass(frozen=True, kw_only=True, eq=False)
class Tissue:
    """mask: (*coarse) bool, True for tissue. shape_px0: level-0 pixels of the case that it covers."""

    mask: NDArray[np.bool_]
    shape_px0: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the case, in [0, 1]."""
        return float(self.mask.mean())

    def touches(self, low_px0: NDArray[np.int64], side_px0: tuple[int, ...]) -> NDArray[np.bool_]:
        """(T,) whether each box from low_px0 (T, axes) on holds any tissue."""
        scale = np.array(self.mask.shape) / np.array(self.shape_px0)
        first = np.clip(np.floor(low_px0 * scale).astype(int), 0, np.array(self.mask.shape) - 1)
        last = np.clip(np.ceil((low_px0 + np.array(side_px0)) * scale).astype(int), first + 1, self.mask.shape)
        boxes = (tuple(slice(a, b) for a, b in zip(f, p, strict=True)) for f, p in zip(first, last, strict=True))
        return np.array([self.mask[box].any() for box in boxes], dtype=bool)


def find_tissue(case: HasPixels) -> Tissue:
    """The tissue of a slide, from the finest level that is at most LONGEST_PX long, with one pixel of margin."""
    fit = [level for level, shape in enumerate(case.shapes) if max(shape) <= LONGEST_PX]
    level = fit[0] if fit else len(case.shapes) - 1
    image = case.read_image(level, (0,) * len(case.shapes[level]), case.shapes[level])
    mask = tissue_mask(image)
    return Tissue(mask=binary_dilation(mask, np.ones((3,) * mask.ndim)), shape_px0=case.shapes[0])


def tissue_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """(C, *S) bright-field image -> (*S) True where it is darker than glass in any channel: stains take some colours, not all."""
    from skimage.filters import threshold_otsu

    top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else max(float(image.max()), 1e-9)
    darkest = uniform_filter(image.min(axis=0).astype(np.float32) / top, size=3)
    if np.ptp(darkest) < CONTRAST:
        return np.full(darkest.shape, darkest.mean() < GLASS)
    cut = float(threshold_otsu(darkest))  # type: ignore[no-untyped-call]
    tissue: NDArray[np.bool_] = darkest <= cut
    contrast = float(darkest[~tissue].mean() - darkest[tissue].mean())
    return tissue if contrast >= CONTRAST else np.full(darkest.shape, darkest.mean() < GLASS)
