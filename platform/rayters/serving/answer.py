"""Maps as files: PNG for what is flat and whole, NIfTI for volumes, NumPy for everything.

Shapes: K classes, A annotators, S the spatial axes, at the model's resolution.
"""

import gzip
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.formats import Frame
from rayters.inference.maps import Maps
from rayters.serving.refusal import RefusedError
from rayters.serving.work import Answer, Want


def coded(
    maps: Maps,
    want: Want,
    *,
    annotators: tuple[str, ...],
    spacing_um: tuple[float, ...] | None = None,
    frame: Frame | None = None,
    down: int = 1,
) -> Answer:
    """The wanted map as a file. spacing_um, frame: of the picture; down: its pixels per pixel of the maps.

    Raises:
        RefusedError: 422 when the model has no such map, or the format can not hold it.
    """
    values = chosen(maps, want, annotators)
    flat = values.ndim == 2
    format = (
        want.format if want.format != "auto" else ("png" if flat else "nifti" if maps.posterior.ndim == 4 else "npy")
    )
    if format == "npy":
        out = io.BytesIO()
        np.save(out, values, allow_pickle=False)
        return Answer(body=out.getvalue(), media_type="application/x-npy", suffix="npy")
    if format == "png":
        if not flat:
            raise RefusedError(422, f"a PNG holds one flat map, this one is {values.shape}: ask for as=npy or as=nifti")
        return Answer(body=_png(values), media_type="image/png", suffix="png")
    affine = _affine(maps.posterior.ndim - 1, spacing_um, frame, down)
    return Answer(body=_nifti(values, affine, maps.posterior.ndim - 1), media_type="application/gzip", suffix="nii.gz")


def chosen(maps: Maps, want: Want, annotators: tuple[str, ...]) -> NDArray[Any]:
    """(*S) uint8 labels, (K, *S) or (*S) float32.

    Raises:
        RefusedError: 422 for an annotator whom the model does not know.
    """
    if want.answer == "posterior":
        return maps.posterior
    if want.answer == "uncertainty":
        return maps.uncertainty
    if want.answer == "labels":
        return maps.labels
    drawn = maps.annotator_labels
    if drawn is None:
        raise RefusedError(422, "this model's method says nothing about annotators: ask for answer=labels")
    if want.annotator not in annotators:
        raise RefusedError(422, f"this model does not know that annotator: it learnt from {', '.join(annotators)}")
    one: NDArray[np.uint8] = drawn[annotators.index(str(want.annotator))]
    return one


def _png(values: NDArray[Any]) -> bytes:
    """Class values as they are; fractions as 0 .. 255."""
    from PIL import Image

    grey = values if values.dtype == np.uint8 else np.rint(values * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _nifti(values: NDArray[Any], affine: NDArray[np.float64], axes: int) -> bytes:
    """(x, y, z[, class]), gzipped."""
    import nibabel

    spatial = values if values.ndim == axes else np.moveaxis(values, 0, -1)
    turned = spatial.transpose(*reversed(range(axes)), *range(axes, spatial.ndim))
    turned = turned[:, :, None] if axes == 2 else turned
    image: Any = nibabel.Nifti1Image(turned, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _affine(axes: int, spacing_um: tuple[float, ...] | None, frame: Frame | None, down: int) -> NDArray[np.float64]:
    """Voxel (x, y, z) of the maps to millimetres in NIfTI's space (RAS); patients' frames are LPS."""
    affine = np.eye(4)
    if frame is not None:
        affine[:3, :3] = np.array(frame.matrix)[:, ::-1]
        affine[:3, 3] = frame.origin
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    elif spacing_um is not None:
        affine[:axes, :axes] = np.diag([s / 1e3 for s in reversed(spacing_um)])
    shift = np.eye(4)
    shift[:axes, :axes] *= down
    shift[:axes, 3] = (down - 1) / 2  # the middle of the first coarse voxel
    return np.asarray(affine @ shift)
