"""Images whose numbers a case does not hold as they are: floats and wide integers, mapped to 16 bits and traceable
back.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.source import STORED_DTYPES

_USUAL_RANGES = ((0.0, 1.0), (0.0, 255.0), (0.0, 65535.0))


def to_stored(
    pixels: NDArray[Any], value_range: tuple[float, float] | None = None
) -> tuple[NDArray[Any], float, float]:
    """Pixels in a dtype that a case holds, and (slope, intercept) such that source = slope * stored + intercept.

    Whole numbers that fit 16 bits are kept as they are. Anything else is mapped to uint16: from value_range when
    given (values outside are clipped), else from the smallest of 0..1, 0..255, 0..65535 that holds them, else from
    their own minimum and maximum.

    Raises:
        CaseFormatError: NaN or infinity.
    """
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8), 1.0, 0.0
    if pixels.dtype.name in STORED_DTYPES:
        return pixels.astype(pixels.dtype.newbyteorder("=")), 1.0, 0.0
    if pixels.dtype.kind not in "fiu":
        raise CaseFormatError(
            f"the image holds {pixels.dtype}, numbers were expected: export it as 8 or 16 bit integers"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise CaseFormatError(
            f"the image holds {int((~np.isfinite(pixels)).sum())} NaN or infinite values: replace them first"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if value_range is None and (pixels.dtype.kind != "f" or (high > 1 and not (pixels != np.trunc(pixels)).any())):
        for dtype in ("uint8", "int16", "uint16"):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return pixels.astype(dtype), 1.0, 0.0
    low, high = value_range or next(((a, b) for a, b in _USUAL_RANGES if a <= low and high <= b), (low, high))
    slope = (high - low) / 65535 or 1.0
    return np.clip(np.rint((pixels.astype(np.float64) - low) / slope), 0, 65535).astype(np.uint16), slope, low
