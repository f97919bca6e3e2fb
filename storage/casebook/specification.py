"""What the OME-Zarr specification says of a metadata document, rule by rule, as yaozarrs and its own suites read it.

Reading is more patient than the specification: a picture of others opens when its geometry is sound, even if a colour
is misspelt. What departs is told, so that its owner can mend it.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from yaozarrs import v04, v05

_MODELS: Mapping[str, Any] = {"0.4": v04, "0.5": v05}


def departures(ome: Any) -> tuple[str, ...]:
    """Where an image's or a label image's document breaks a MUST of its version; () when it is valid.

    ome: the attributes of a 0.4 group, or what stands under `ome` in a 0.5 one.
    """
    if not isinstance(ome, dict):
        return (f"a {type(ome).__name__} stands where an object was expected",)
    return (*_by_model(ome), *_by_hand(ome))


def _by_model(ome: dict[str, Any]) -> Iterator[str]:
    """The rules that yaozarrs checks; a document with `image-label` alone describes labels whose levels lie elsewhere."""
    version = "0.5" if "version" in ome else "0.4"
    model, document = (
        (_MODELS[version].ImageLabel, ome["image-label"])
        if "image-label" in ome and "multiscales" not in ome
        else (_MODELS[version].LabelImage if "image-label" in ome else _MODELS[version].Image, ome)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what SHOULD be is not asked here
            model.model_validate(document)
    except ValidationError as error:
        for found in error.errors():
            yield f"{'.'.join(str(part) for part in found['loc']) or 'document'}: {' '.join(found['msg'].split())}"


def _by_hand(ome: dict[str, Any]) -> Iterator[str]:
    """Two rules that yaozarrs leaves out: the version of a 0.4 image, and numbers written as text in a window."""
    for multiscale in _objects(ome.get("multiscales")):
        if "version" not in ome and multiscale.get("version", "0.4") != "0.4":
            yield f"multiscales.version: {multiscale['version']!r} where '0.4' was expected"
    omero = ome.get("omero")
    for channel in _objects(omero.get("channels") if isinstance(omero, dict) else None):
        for key, value in (channel.get("window") or {}).items() if isinstance(channel.get("window"), dict) else ():
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"omero.channels.window.{key}: {value!r} where a number was expected"


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def recommendations(ome: Any) -> tuple[str, ...]:
    """What a label image SHOULD say and does not; viewers then choose colours themselves."""
    label = ome.get("image-label") if isinstance(ome, dict) else None
    if not isinstance(label, dict):
        return ()
    missing = ["colors"] * ("colors" not in label) + ["version"] * ("version" not in label and "version" not in ome)
    return tuple(f"image-label.{name}: should be there" for name in missing)
