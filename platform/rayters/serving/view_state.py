"""What the viewer shows of a case, as neuroglancer's state: the image, a layer per annotator, the consensus, heat maps, what was predicted.

URLs begin with ORIGIN, for which the page puts its own address.
"""

from dataclasses import dataclass
from typing import Any, Literal

from casebook import Case, Layer
from casebook.documents import colour
from casebook.location import join, list_names

ORIGIN = "{origin}"
COLOURS = ("#e64b35", "#4dbbd5", "#00a087", "#f39b7f", "#7c8fd6", "#91d1c2", "#ff5252", "#c9a66b")
RGB = "void main() { emitRGB(vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)), toNormalized(getDataValue(2)))); }"
GREY = "#uicontrol invlerp contrast(range=[LOW, HIGH])\nvoid main() { emitGrayscale(contrast()); }"
HEAT = (
    "void main() { float v = toNormalized(getDataValue(0)); if (v < 0.004) discard; "
    "emitRGBA(vec4(min(1.0, 2.0 * v), max(0.0, 2.0 * v - 1.0), 0.25 * (1.0 - v), 0.25 + 0.6 * v)); }"
)
HEATS = {
    "disagreement": "disagreement",
    "uncertainty": "uncertainty",
    "gaze": "gaze",
    "gaze_uncertainty": "gaze_uncertainty",
}
Panels = Literal["one", "side-by-side"]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A heat map: its name, and where it is read."""

    name: str
    path: str


def extras(cohort: str, root: str, case: Case, name: str) -> list[Extra]:
    """Derived heat maps, and those that a prediction left beside the case."""
    found = []
    if len(case.annotators) > 1:
        found.append(Extra(name="disagreement", path=f"/derived/{cohort}/{name}/disagreement/"))
    for prediction in list_names(join(root, "predictions")):
        for image in list_names(join(root, "predictions", prediction, name)):
            kind = image.removesuffix(".ome.zarr")
            if kind in HEATS:
                path = f"/data/{cohort}/predictions/{prediction}/{name}/{image}/"
                found.append(Extra(name=f"{prediction}: {kind}", path=path))
    return found


def view_state(
    cohort: str,
    name: str,
    path: str,
    case: Case,
    heats: list[Extra],
    panels: Panels,
    window: tuple[float, float] = (0.0, 255.0),
) -> dict[str, Any]:
    """path: of the case, as the browser asks for it, with a slash at the end. window: intensities shown from black to white."""
    beside = panels == "side-by-side"
    drawn = [
        _labels(layer.id, f"{path}labels/{layer.id}/", case, n, _shown(layer)) for n, layer in enumerate(case.layers)
    ]
    if len(case.annotators) > 1:
        drawn.append(_labels("consensus", f"/derived/{cohort}/{name}/consensus/", case, len(drawn), False))
    maps = [_heat(extra, visible=beside) for extra in heats]
    size, spacing = case.shapes[0], case.spacing_um[0]
    finest = min(spacing)
    across = max(n * s / finest for n, s in zip(size, spacing, strict=True))  # in the unit of the finest axis
    return {
        "dimensions": {axis: [s * 1e-6, "m"] for axis, s in zip(case.axes, spacing, strict=True)},
        "position": [n / 2 for n in size],
        "crossSectionScale": across / (190 if beside else 560 if len(size) == 2 else 260),
        "projectionScale": across * 1.5,
        "showAxisLines": False,
        "layers": [_image(case, path, window), *drawn, *maps],
        "layout": _side_by_side(case, heats) if beside else "xy" if len(size) == 2 else "4panel",
    }


def _shown(layer: Layer) -> bool:
    return layer.role == "annotator"


def _image(case: Case, path: str, window: tuple[float, float]) -> dict[str, Any]:
    axes = {axis: [s * 1e-6, "m"] for axis, s in zip(case.axes, case.spacing_um[0], strict=True)}
    source = {"url": f"{ORIGIN}{path}|zarr3:", "transform": {"outputDimensions": {"c^": [1, ""], **axes}}}
    grey = GREY.replace("LOW", f"{window[0]:g}").replace("HIGH", f"{window[1]:g}")
    colours = case.channels == 3 and case.dtype == "uint8"
    return {"type": "image", "name": "image", "source": source, "shader": RGB if colours else grey}


def _labels(name: str, path: str, case: Case, number: int, shown: bool) -> dict[str, Any]:
    """One colour per annotator for two classes, the classes' own for more."""
    classes = range(1, len(case.classes))
    own = COLOURS[number % len(COLOURS)]
    colours = {str(k): own if len(case.classes) == 2 else "#{:02x}{:02x}{:02x}".format(*colour(k)[:3]) for k in classes}
    return {
        "type": "segmentation",
        "name": name,
        "source": f"{ORIGIN}{path}|zarr3:",
        "segments": [str(k) for k in classes],
        "segmentColors": colours,
        "selectedAlpha": 0.45,
        "notSelectedAlpha": 0,
        "visible": shown,
    }


def _heat(extra: Extra, *, visible: bool) -> dict[str, Any]:
    source = f"{ORIGIN}{extra.path}|zarr3:"
    look = {"shader": HEAT, "blend": "default", "opacity": 0.8, "visible": visible}
    return {"type": "image", "name": extra.name, "source": source, **look}


def _side_by_side(case: Case, heats: list[Extra]) -> dict[str, Any]:
    """The annotators next to each other, then the heat maps; every panel shows the same place."""
    groups = [["image", who] for who in case.annotators] + [["image", heat.name] for heat in heats]
    children = [{"type": "viewer", "layers": layers, "layout": "xy"} for layers in groups]
    rows = [children[i : i + 3] for i in range(0, len(children), 3)]
    return {"type": "column", "children": [{"type": "row", "children": row} for row in rows]}
