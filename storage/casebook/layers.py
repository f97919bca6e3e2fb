"""Adding, replacing and removing one annotator's layer of a case that already lies somewhere.

A layer exists once the registry (labels/zarr.json) lists it, and the registry is written last; while a layer is being
replaced it is absent, never half old and half new. The cohort's row does not change by itself: describe the case
again, and `put_rows`.
"""

import os
from typing import Any

from casebook.arrays import forget_handles
from casebook.case import Case, Layer
from casebook.conditional import replace_json
from casebook.documents import label_group, labels_registry
from casebook.errors import CaseFormatError, ConflictError
from casebook.location import check_name, join, remove, write_json
from casebook.one_pass import Progress, Scheduler, Storage, case_factors, plan_layer, write_arrays
from casebook.opening import open_case
from casebook.source import as_labels
from casebook.write import check_shape


def add_layer(
    url: str | os.PathLike[str],
    layer: Layer,
    labels: Any,
    *,
    storage: Storage | None = None,
    existing: str = "refuse",
    scheduler: Scheduler = None,
    progress: Progress | None = None,
) -> Case:
    """Draws one more layer on a case; an interrupted call resumes.

    labels: (*S) array or LabelSource, values 0..K-1 and IGNORE. existing: 'refuse' or 'replace' a layer of the same id.

    Raises:
        ConflictError: the layer is there and was not to be replaced. CaseFormatError: shape or values do not fit the
        case.
    """
    case = open_case(url)
    check_name(layer.id, "layer")
    listed = next((other.id for other in case.layers if other.id.lower() == layer.id.lower()), None)
    if listed is not None and existing != "replace":
        raise ConflictError(f"case {case.url} has a layer {listed!r}: choose another id, or existing='replace'")
    source = as_labels(labels)
    check_shape(layer.id, source, case.shapes[0])
    _refuse_foreign(case)
    if listed is not None:
        case = remove_layer(url, listed)
    factors = case_factors(case)
    array = plan_layer(case.url, layer, source, case.classes, factors, storage or Storage())
    write_arrays(join(case.url, "labels", layer.id), [array], scheduler, progress)
    group = label_group(
        layer=layer, axes=case.axes, factors=factors, spacing_um=case.spacing_um[0], classes=case.classes
    )
    write_json(join(case.url, "labels", layer.id, "zarr.json"), group)
    list_layer(case.url, layer.id)
    forget_handles()
    return open_case(url)


def remove_layer(url: str | os.PathLike[str], layer_id: str) -> Case:
    """Unlists a layer, then deletes its pixels.

    Raises:
        CaseFormatError: there is no such layer.
    """
    case = open_case(url)
    if layer_id not in {layer.id for layer in case.layers}:
        raise CaseFormatError(
            f"case {case.url} has no layer {layer_id!r}: it has {', '.join(x.id for x in case.layers)}"
        )
    _refuse_foreign(case)
    unlist_layer(case.url, layer_id)
    remove(join(case.url, "labels", layer_id))
    forget_handles()
    return open_case(url)


def _refuse_foreign(case: Case) -> None:
    if not case.stored.levels[0].complete:
        raise CaseFormatError(
            f"{case.url} was not written by the casebook: convert it first with jobs/ingest.py, then draw on it"
        )


def list_layer(url: str, layer_id: str) -> None:
    """Makes a layer visible whose arrays and document are there."""
    _relist(url, add=layer_id)


def unlist_layer(url: str, layer_id: str) -> None:
    """Makes a layer invisible, if it is not already; its arrays stay."""
    _relist(url, drop=layer_id)


def _relist(url: str, *, add: str | None = None, drop: str | None = None) -> None:
    """Changes the registry so that two annotators who save at once are both listed."""
    place = join(url, "labels", "zarr.json")

    def change(document: dict[str, Any]) -> dict[str, Any]:
        listed = [id for id in document["attributes"]["ome"]["labels"] if id not in (add, drop)]
        return labels_registry((*listed, *([add] if add else [])))

    replace_json(place, change, absent=labels_registry(()))
