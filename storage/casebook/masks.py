"""From what a mask file holds to class values: binary 0/255, grey maps, named values, one file per class."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.labels import IGNORE


def flat_mask(pixels: NDArray[Any]) -> NDArray[Any]:
    """The one plane of a (C, *S) mask file; colour masks are refused unless their channels agree.

    Raises:
        CaseFormatError: the channels differ.
    """
    colours = pixels[:3] if pixels.shape[0] == 4 else pixels[:1] if pixels.shape[0] == 2 else pixels
    if any(not np.array_equal(colours[0], other) for other in colours[1:]):
        raise CaseFormatError(
            f"the mask is a colour picture of {pixels.shape[0]} channels: save it as one channel whose values are "
            "the classes"
        )
    return np.asarray(colours[0])


def to_classes(
    mask: NDArray[Any],
    classes: tuple[str, ...],
    *,
    values: Mapping[int, int] | None = None,
    threshold: float | None = None,
) -> NDArray[np.uint8]:
    """Class values 0..K-1 and IGNORE.

    mask: (*S) any dtype. values: what each value of the file means; None: the value is the class. With two classes
    a mask of 0 and one other value above 1 (255, usually) is binary. threshold: applied only when values are not
    classes otherwise.

    Raises:
        CaseFormatError: a value without a meaning, listed with the classes.
    """
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8)
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise CaseFormatError(
            f"the mask holds {int((~np.isfinite(mask)).sum())} NaN or infinite values: save it as whole numbers"
        )
    present = np.unique(mask)
    if values is not None:
        return _mapped(mask, present, values)
    top = len(classes) - 1
    if np.isin(present, [*range(top + 1), IGNORE]).all() and not (top == 1 and present.tolist() in ([0, 255], [255])):
        return mask.astype(np.uint8)
    if top == 1 and len(present) <= 2 and present[0] in (0, present[-1]) and present[-1] > 0:
        return np.asarray(mask != 0).astype(np.uint8)
    if threshold is not None and top == 1:
        return np.asarray(mask > threshold).astype(np.uint8)
    shown = ", ".join(f"{v:g}" for v in present[:6]) + (
        f" ... {present[-1]:g} ({len(present)} values)" if len(present) > 6 else ""
    )
    raise CaseFormatError(
        f"the mask holds {shown}; the classes are 0..{top} ({', '.join(classes)}) and {IGNORE} for IGNORE: name all "
        "--classes, say what each value means with --values, or give --threshold for a grey map"
    )


def _mapped(mask: NDArray[Any], present: NDArray[Any], values: Mapping[int, int]) -> NDArray[np.uint8]:
    if strange := [v for v in present.tolist() if v not in values]:
        raise CaseFormatError(
            f"the mask holds {strange[:6]}, --values names {sorted(values)}: name these too, or IGNORE them"
        )
    out = np.full(mask.shape, IGNORE, np.uint8)
    for value, meaning in values.items():
        out[mask == value] = meaning
    return out


def parse_values(pairs: tuple[str, ...], classes: tuple[str, ...]) -> dict[int, int] | None:
    """`("0=background", "128=tumour", "255=IGNORE")` as {0: 0, 128: 1, 255: IGNORE}; nothing as None."""
    if not pairs:
        return None
    meanings = {name: k for k, name in enumerate(classes)} | {"IGNORE": IGNORE}
    out = {}
    for pair in pairs:
        value, _, name = pair.partition("=")
        if not value.strip().lstrip("-").isdigit() or name not in meanings:
            raise CaseFormatError(f"--values {pair!r}: VALUE=CLASS was expected, the classes are {', '.join(meanings)}")
        out[int(value)] = meanings[name]
    return out
