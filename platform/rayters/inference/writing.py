"""From maps to what lies on disk: which images and label layers a prediction consists of, where they go, and how they are coded.

Beside the case                                     In a cohort of its own (to)
    case.ome.zarr/labels/<name>                         cases/<case>.ome.zarr           the posterior, an image of K channels
                  labels/<name>-<annotator>                   labels/<name>, labels/<name>-<annotator>
    predictions/<name>/<case>/posterior.ome.zarr        maps/<case>/uncertainty.ome.zarr, reliability, confusion,
                              uncertainty.ome.zarr ...                           gaze, gaze_uncertainty

All images are uint8; each says by its intensity what a step means: that of gaze is a field of view, the others' 1/255.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from casebook import Case, Layer
from casebook.joint import ImageTarget, JointPlan, LayerTarget, plan_joint
from casebook.location import check_name, join
from casebook.one_pass import case_factors
from casebook.pyramid import level_factors
from rayters.inference.blend import Stack
from rayters.inference.maps import Floats, Maps
from rayters.inference.predict import fits
from rayters.inference.tiling import Tiling
from rayters.networks.task import Task
from rayters.training.model import Model

CHUNK_PX = {2: (512, 512), 3: (64, 128, 128)}
SPANS = {2: (16, 8, 4, 2), 3: (8, 4, 2)}  # chunks a side of a block; large blocks look at fewer tiles twice


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where predictions go, and what of them is kept."""

    name: str = "rayters"  # id of the consensus layer; annotators' layers are <name>-<annotator>
    to: str | None = None  # folder of a cohort of its own; none: beside the cases
    block_mib: int = 512  # memory for the maps of a block; more looks at fewer tiles twice


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What a model has to say, and how: all that its outputs on disk depend on, without its weights.

    fingerprint: of the weights and everything else that decides the result.
    """

    task: Task
    classes: tuple[str, ...]
    annotators: tuple[str, ...]  # () where it says nothing about them
    downsampling: int
    gaze_scales: tuple[float, ...]  # () where the gaze does not choose
    confusion: bool
    fingerprint: str


def speech_of(model: Model, stack: Stack, tiling: Tiling, weights: bytes) -> Speech:
    """stack: as every member of the ensemble has it; weights: of all of them."""
    said = json.dumps([asdict(tiling), model.classes, model.annotators], sort_keys=True).encode()
    return Speech(
        task=model.task,
        classes=model.classes,
        annotators=model.annotators if stack.annotators else (),
        downsampling=model.run.downsampling,
        gaze_scales=stack.gaze,
        confusion=stack.confusion and stack.annotators > 0,
        fingerprint=hashlib.sha256(weights + said).hexdigest()[:16],
    )


def plan_output(speech: Speech, case: Case, name: str, folder: str, output: Output) -> JointPlan:
    """What is written for one case. name: the case's; folder: of its cohort.

    Raises:
        ValueError: other channels, axes or classes than the case has, or a resolution that does not halve.
    """
    fits(speech.task, case)
    axes, down = len(case.shapes[0]), speech.downsampling
    if down & (down - 1) or down > min(CHUNK_PX[axes]):
        raise ValueError(f"a model of downsampling {down}: predictions are written for powers of two, up to 64")
    if output.to is None and case.classes != speech.classes:
        raise ValueError(
            f"case {name!r} has classes {', '.join(case.classes)}, the model speaks of {', '.join(speech.classes)}: "
            "take a model of this cohort, or write into a cohort of its own with --to"
        )
    shape = tuple(-(-side // down) for side in case.shapes[0])
    spacing = tuple(s * down for s in case.spacing_um[0])
    images = _images(speech, shape, spacing, name, folder, output)
    chunk = tuple(c // down for c in CHUNK_PX[axes])
    return plan_joint(
        images,
        _layers(speech, case, images[0], output),
        identity=f"{speech.fingerprint}-{output.name}-{'x'.join(map(str, case.shapes[0]))}",
        chunk_px=chunk,
        span=_span(speech, chunk, output.block_mib),
    )


def _span(speech: Speech, chunk: tuple[int, ...], block_mib: int) -> int:
    """The widest block whose maps fit."""
    a, k = len(speech.annotators), len(speech.classes)
    views = len(speech.gaze_scales)
    # float32 sums, and what becomes of them
    maps = 2 * (k + views) + 2 + 2 * a * (k + 1) + 2 * a * k * k * speech.confusion
    fits = [s for s in SPANS[len(chunk)] if 4 * maps * prod(s * c for c in chunk) <= block_mib * 2**20]
    return fits[0] if fits else 2


def _images(
    speech: Speech, shape: tuple[int, ...], spacing: tuple[float, ...], name: str, folder: str, output: Output
) -> list[ImageTarget]:
    pairs = [f"{i} where {j}" for i in speech.classes for j in speech.classes]
    channels = {
        "posterior": speech.classes,
        "uncertainty": ("uncertainty",),
        "reliability": speech.annotators,
        "confusion": tuple(f"{a}: {pair}" for a in speech.annotators for pair in pairs) if speech.confusion else (),
        "gaze": ("field of view",) if speech.gaze_scales else (),
        "gaze_uncertainty": ("uncertainty of the field of view",) if speech.gaze_scales else (),
    }
    widest = max(speech.gaze_scales, default=1.0)
    return [
        ImageTarget(
            key=key,
            url=_image_url(key, name, folder, output),
            channels=names,
            shape=shape,
            spacing_um=spacing,
            classes=speech.classes,
            intensity=((widest if key == "gaze" else 1.0) / 255, 0.0),
        )
        for key, names in channels.items()
        if names
    ]


def _image_url(key: str, name: str, folder: str, output: Output) -> str:
    if output.to is None:
        return join(folder, "predictions", check_name(output.name, "--name"), name, f"{key}.ome.zarr")
    if key == "posterior":
        return join(output.to, "cases", f"{name}.ome.zarr")
    return join(output.to, "maps", name, f"{key}.ome.zarr")


def _layers(speech: Speech, case: Case, posterior: ImageTarget, output: Output) -> list[LayerTarget]:
    beside = output.to is None
    shape, spacing = (case.shapes[0], case.spacing_um[0]) if beside else (posterior.shape, posterior.spacing_um)
    ids = {"consensus": output.name} | {f"draws {a}": f"{output.name}-{a}" for a in speech.annotators}
    return [
        LayerTarget(
            key=key,
            url=case.url if beside else posterior.url,
            layer=Layer(id=check_name(id, "layer"), role="prediction", tool=f"rayters {speech.fingerprint}"),
            shape=shape,
            factors=case_factors(case) if beside else level_factors(shape, spacing),
            spacing_um=spacing,
            classes=speech.classes,
        )
        for key, id in ids.items()
    ]


def coded(maps: Maps, speech: Speech, plan: JointPlan, index: int) -> dict[str, NDArray[np.uint8]]:
    """The maps of block ``index`` as what is written, by the key of its target."""
    blocks = {"posterior": _in_steps(maps.posterior), "uncertainty": _in_steps(maps.uncertainty)[None]}
    if speech.annotators and maps.reliability is not None:
        blocks["reliability"] = _in_steps(maps.reliability)
    if speech.confusion and maps.confusion is not None:
        blocks["confusion"] = _in_steps(maps.confusion.reshape(-1, *maps.confusion.shape[3:]))
    if speech.gaze_scales and maps.gaze is not None and maps.gaze_uncertainty is not None:
        blocks["gaze"] = _in_steps(maps.gaze / max(speech.gaze_scales))[None]
        blocks["gaze_uncertainty"] = _in_steps(maps.gaze_uncertainty)[None]
    drawn = maps.annotator_labels
    planes = {"consensus": maps.labels}
    if drawn is not None:
        planes |= {f"draws {a}": plane for a, plane in zip(speech.annotators, drawn, strict=False)}
    for target, array in zip(plan.layers, plan.arrays[len(plan.images) :], strict=True):
        blocks[target.key] = _on_grid(planes[target.key], array.rounds[0].blocks[index][1])
    return blocks


def _in_steps(values: Floats) -> NDArray[np.uint8]:
    """[0, 1] -> 0 .. 255, rounded."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), dtype=np.uint8)


def _on_grid(labels: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Labels of a coarser grid on the pixels of a finer one, each repeated."""
    for axis, (have, want) in enumerate(zip(labels.shape, size, strict=True)):
        if have != want:
            labels = labels.repeat(-(-want // have), axis=axis).take(range(want), axis=axis)
    return labels
