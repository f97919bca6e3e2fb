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
GREY = "#uicontrol invlerp contrast\nvoid main() { emitGrayscale(contrast()); }"
HEAT = (
    "void main() { float v = toNormalized(getDataValue(0)); if (v < 0.004) discard; "
    "emitRGBA(vec4(min(1.0, 2.0 * v), max(0.0, 2.0 * v - 1.0), 0.25 * (1.0 - v), 0.25 + 0.6 * v)); }"
)
HEATS = {"disagreement": "disagreement", "uncertainty": "uncertainty", "gaze": "gaze"}
Panels = Literal["one", "side-by-side"]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A heat map: its name, and where it is read. shown: from the start."""

    name: str
    path: str
    shown: bool = False


def extras(cohort: str, root: str, case: Case, name: str) -> list[Extra]:
    """Derived heat maps, and those that a prediction left beside the case."""
    found = []
    if len(case.annotators) > 1:
        found.append(Extra(name="disagreement", path=f"/derived/{cohort}/{name}/disagreement/", shown=True))
    for prediction in list_names(join(root, "predictions")):
        for image in list_names(join(root, "predictions", prediction, name)):
            kind = image.removesuffix(".ome.zarr")
            if kind in HEATS:
                path = f"/data/{cohort}/predictions/{prediction}/{name}/{image}/"
                found.append(Extra(name=f"{prediction}: {kind}", path=path))
    return found


def view_state(cohort: str, name: str, path: str, case: Case, heats: list[Extra], panels: Panels) -> dict[str, Any]:
    """path: of the case, as the browser asks for it, with a slash at the end."""
    image = _image(case, path)
    drawn = [
        _labels(layer.id, f"{path}labels/{layer.id}/", case, n, _shown(layer)) for n, layer in enumerate(case.layers)
    ]
    if len(case.annotators) > 1:
        drawn.append(_labels("consensus", f"/derived/{cohort}/{name}/consensus/", case, len(drawn), False))
    maps = [_heat(extra) for extra in heats]
    size, spacing = case.shapes[0], case.spacing_um[0]
    state: dict[str, Any] = {
        "dimensions": {axis: [s * 1e-6, "m"] for axis, s in zip(case.axes, spacing, strict=True)},
        "position": [n / 2 for n in size],
        "crossSectionScale": max(size[-2:]) / 560,
        "projectionScale": max(size) * 1.5,
        "showAxisLines": False,
        "layers": [image, *drawn, *maps],
        "layout": "xy" if len(size) == 2 else "4panel",
    }
    if panels == "side-by-side":
        state["layout"] = _side_by_side(state, case)
    return state


def _shown(layer: Layer) -> bool:
    return layer.role == "annotator"


def _image(case: Case, path: str) -> dict[str, Any]:
    axes = {axis: [s * 1e-6, "m"] for axis, s in zip(case.axes, case.spacing_um[0], strict=True)}
    source = {"url": f"{ORIGIN}{path}|zarr3:", "transform": {"outputDimensions": {"c^": [1, ""], **axes}}}
    if case.channels == 3 and case.dtype == "uint8":
        return {"type": "image", "name": "image", "source": source, "shader": RGB}
    return {"type": "image", "name": "image", "source": source, "shader": GREY}


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


def _heat(extra: Extra) -> dict[str, Any]:
    source = f"{ORIGIN}{extra.path}|zarr3:"
    look = {"shader": HEAT, "blend": "default", "opacity": 0.8, "visible": extra.shown}
    return {"type": "image", "name": extra.name, "source": source, **look}


def _side_by_side(state: dict[str, Any], case: Case) -> dict[str, Any]:
    """The annotators next to each other, then all heat maps; every panel shows the same place."""
    groups = [["image", who] for who in case.annotators]
    heats = [layer["name"] for layer in state["layers"] if layer.get("shader") == HEAT and layer["visible"]]
    groups += [["image", *heats]] if heats else []
    panel = "xy"
    children = [{"type": "viewer", "layers": layers, "layout": panel} for layers in groups]
    rows = [children[i : i + 3] for i in range(0, len(children), 3)]
    return {"type": "column", "children": [{"type": "row", "children": row} for row in rows]}
