"""The metadata documents of a case, built and checked with the yaozarrs models of OME-Zarr 0.5.

Ours lies beside `ome` under `casebook`: the specification has no place for who drew a label, when, with what tool, and
which value means 'did not look here'.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import yaozarrs
from yaozarrs import v05

from casebook.case import Layer
from casebook.labels import IGNORE

SCHEMA = 1
_PALETTE = (
    (0, 0, 0, 0),
    (230, 75, 53, 160),
    (77, 187, 213, 160),
    (0, 160, 135, 160),
    (243, 155, 127, 160),
    (60, 84, 136, 160),
    (145, 209, 194, 160),
    (220, 0, 0, 160),
    (126, 97, 72, 160),
    (176, 156, 133, 160),
)


def image_group(
    *,
    name: str,
    axes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    spacing_um: tuple[float, ...],
    channels: int,
    dtype: str,
    ours: dict[str, Any],
    channel_names: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The zarr.json of the image: its presence makes the case visible, so it is written last."""
    image = v05.Image(
        multiscales=[_multiscale(name, axes, factors, spacing_um, image=True)],
        omero=_rendering(channels, dtype, channel_names),
    )
    return _group({"ome": _plain(image), "casebook": {"schema": SCHEMA, "ignore": IGNORE, **ours}})


def label_group(
    *,
    layer: Layer,
    axes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    spacing_um: tuple[float, ...],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The zarr.json of one label image."""
    names = [*enumerate(classes), (IGNORE, "IGNORE: did not look here")]
    description = v05.ImageLabel.model_validate(
        {
            "colors": [{"label-value": value, "rgba": colour(value)} for value, _ in names],
            "properties": [{"label-value": value, "name": text} for value, text in names],
            "source": {"image": "../../"},
        }
    )
    image = v05.LabelImage.model_validate(
        {"multiscales": [_multiscale(layer.id, axes, factors, spacing_um, image=False)], "image-label": description}
    )
    return _group(
        {
            "ome": _plain(image),
            "casebook": {"schema": SCHEMA, "ignore": IGNORE, "layer": asdict(layer), "complete": True},
        }
    )


def labels_registry(ids: tuple[str, ...]) -> dict[str, Any]:
    """The zarr.json of the `labels` group: the list of the layers that exist."""
    return _group({"ome": {"version": "0.5", "labels": list(ids)}})


def colour(value: int) -> tuple[int, int, int, int]:
    """RGBA 0..255 of a label value; background is transparent, IGNORE a faint grey."""
    return (
        (128, 128, 128, 60) if value == IGNORE else _PALETTE[0 if value == 0 else (value - 1) % (len(_PALETTE) - 1) + 1]
    )


def _multiscale(
    name: str,
    axes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    spacing_um: tuple[float, ...],
    *,
    image: bool,
) -> Any:
    lead = 1 if image else 0
    datasets = []
    for level, factor in enumerate(factors):
        scale = [1.0] * lead + [s * f for s, f in zip(spacing_um, factor, strict=True)]
        # The centre of a coarse pixel lies half a coarse pixel minus half a fine one further in.
        shift = [0.0] * lead + [s * (f - 1) / 2 for s, f in zip(spacing_um, factor, strict=True)]
        transforms: list[Any] = [v05.ScaleTransformation(scale=scale)]
        if any(shift):
            transforms.append(v05.TranslationTransformation(translation=shift))
        datasets.append(v05.Dataset(path=str(level), coordinateTransformations=transforms))
    spatial = [v05.SpaceAxis(name=axis, unit="micrometer") for axis in axes]
    channel = [v05.ChannelAxis(name="c")] if image else []
    method = "mean" if image else "mode"
    about = {
        "method": f"casebook.pyramid.{method}_down",
        "description": f"2x {method} of neighbours, finest axes first",
    }
    return v05.Multiscale(name=name, axes=[*channel, *spatial], datasets=datasets, type=method, metadata=about)


def _rendering(channels: int, dtype: str, names: tuple[str, ...]) -> Any:
    """Red, green and blue for three channels without names, so that viewers show a slide as a slide; grey otherwise."""
    top = np.iinfo(dtype).max
    colours = ("FF0000", "00FF00", "0000FF") if channels == 3 and not names else ("FFFFFF",) * channels
    window = {"min": float(np.iinfo(dtype).min), "max": float(top), "start": 0.0, "end": float(top)}
    shown = [{"active": not names or i == len(names) - 1, "color": c, "window": window} for i, c in enumerate(colours)]
    labelled = [each | {"label": name} for each, name in zip(shown, names, strict=True)] if names else shown
    return v05.Omero.model_validate({"channels": labelled})


def _plain(model: Any) -> dict[str, Any]:
    document: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    yaozarrs.validate_ome_object(document)
    return document


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
