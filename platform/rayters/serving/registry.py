"""The models that may be served: versioned, checksummed, promoted by one small file; nothing in it is ever unpickled.

registry/<name>/<version>/run.json             what a checkpoint holds, byte for byte
                          weights.safetensors
                          card.json            classes, spacing, what was measured, a SHA-256 of each file; written last
registry/<name>/current.json                   the promoted version and the checksum of its card

The version is the checksum of its card's content, so publishing the same model twice is publishing it once, and a version that was
promoted can not be replaced by another of the same name.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casebook import CaseNotFoundError, ConflictError
from casebook.conditional import create_bytes, replace_json
from casebook.location import canonical, check_name, filesystem, join, list_names, read_bytes, read_json, store_errors
from rayters.training.model import Model, load_model

FILES = ("run.json", "weights.safetensors")
SCHEMA = 1
CURRENT = "current.json"


class ModelError(ValueError):
    """A model that is not in the registry, or is not what its card says."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What there is to know about a model before it is loaded.

    confusions: (A, K, K) P(annotator writes i | truth j) as the model sees them on the cohort that it was published with; None where
    nobody looked. spacing_um: of the images that it was trained on, level 0. files: SHA-256 of each file, in hexadecimal.
    """

    name: str
    classes: tuple[str, ...]
    annotators: tuple[str, ...]
    axes: int
    channels: int
    method: str
    gaze: str
    measured: dict[str, float]
    files: dict[str, str]
    spacing_um: tuple[float, ...] | None = None
    confusions: tuple[tuple[tuple[float | None, ...], ...], ...] | None = None
    intended_use: str = "research; not for diagnosis"
    trained_on: str = "not stated"
    licence: str = "not stated"
    published_on: str = ""  # ISO 8601, UTC; no part of the version
    version: str = ""

    @property
    def checksum(self) -> str:
        """SHA-256 of all that decides what the model is."""
        content = {k: v for k, v in asdict(self).items() if k not in ("published_on", "version")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """'name@version'."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Words:
    """What only a person can say about a model."""

    intended_use: str = "research; not for diagnosis"
    trained_on: str = "not stated"
    licence: str = "not stated"


def publish(
    registry: str,
    name: str,
    checkpoint: str | os.PathLike[str],
    *,
    words: Words | None = None,
    spacing_um: tuple[float, ...] | None = None,
    confusions: tuple[tuple[tuple[float | None, ...], ...], ...] | None = None,
) -> Card:
    """Copies a checkpoint's two files into the registry and writes its card; it is not served before it is promoted.

    Raises:
        FileNotFoundError: the folder holds no model. CasebookError: the store refused.
    """
    check_name(name, "model")
    folder = Path(checkpoint)
    model = load_model(folder)  # what cannot be loaded is not published
    card = _describe(model, name, {file: _digest((folder / file).read_bytes()) for file in FILES})
    card = replace(card, **asdict(words or Words()), spacing_um=spacing_um, confusions=confusions)
    card = replace(card, version=card.checksum[:12], published_on=datetime.now(UTC).isoformat(timespec="seconds"))
    place = join(canonical(registry), name, card.version)
    for file in FILES:
        _create(join(place, file), (folder / file).read_bytes())
    _create(join(place, "card.json"), json.dumps(asdict(card), indent=1).encode())
    return read_card(registry, name, card.version)


def promote(registry: str, name: str, version: str) -> Card:
    """Makes a version the one that is served from now on; readers see the old or the new one, never neither.

    Raises:
        ModelError: there is no such version, or it is damaged.
    """
    card = check(registry, name, version)
    pointer = {"schema": SCHEMA, "version": version, "checksum": card.checksum}
    replace_json(join(canonical(registry), name, CURRENT), lambda _: pointer, absent=pointer)
    return card


def check(registry: str, name: str, version: str) -> Card:
    """Compares every file of a version with its checksum.

    Raises:
        ModelError: there is no such version, or it is damaged.
    """
    card = read_card(registry, name, version)
    for file, expected in card.files.items():
        _check(_read(join(canonical(registry), name, version, file)), expected, f"{card.id}/{file}")
    return card


def current(registry: str, name: str) -> Card:
    """The card of the promoted version.

    Raises:
        ModelError: no such model, none of its versions is promoted, or the promoted one was changed since.
    """
    check_name(name, "model")
    place = join(canonical(registry), name, CURRENT)
    try:
        pointer = read_json(place)
    except CaseNotFoundError:
        known = ", ".join(names(registry)) or "none"
        raise ModelError(f"model {name!r} has no promoted version in {registry}: known are {known}") from None
    card = read_card(registry, name, str(pointer.get("version")))
    if card.checksum != pointer.get("checksum"):
        raise ModelError(f"{card.id} is not what was promoted (its card's checksum differs): publish and promote again")
    return card


def names(registry: str) -> list[str]:
    """All models that have a promoted version."""
    root = canonical(registry)
    return [name for name in list_names(root) if CURRENT in list_names(join(root, name))]


def versions(registry: str, name: str) -> list[Card]:
    """The whole versions of a model, oldest first."""
    check_name(name, "model")
    found = [v for v in list_names(join(canonical(registry), name)) if v != CURRENT]
    return sorted((read_card(registry, name, version) for version in found), key=lambda card: card.published_on)


def read_card(registry: str, name: str, version: str) -> Card:
    """The card of one version.

    Raises:
        ModelError: there is none, or it does not match its own checksum.
    """
    check_name(name, "model")
    check_name(version, "version")
    try:
        document = read_json(join(canonical(registry), name, version, "card.json"))
        card = Card(**{key: _tuples(value) for key, value in document.items()})
    except CaseNotFoundError:
        raise ModelError(f"model {name!r} has no version {version!r} in {registry}") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"the card of {name}@{version} is damaged ({error}): publish the model again") from error
    if card.checksum[:12] != version or (card.name, card.version) != (name, version) or set(card.files) != set(FILES):
        raise ModelError(f"the card of {name}@{version} does not match its checksum: publish the model again")
    return card


def fetch(registry: str, card: Card, *, device: str = "cpu", cache: str | None = None) -> Model:
    """Loads a version, from this machine's copy where there is a whole one.

    Every file is compared with the checksum on the card, also the local copy's. Weights are safetensors, the rest is JSON.

    Raises:
        ModelError: a file is not what the card says, or is no model.
    """
    folder = Path(cache or Path(tempfile.gettempdir()) / f"rayters-models-{os.getuid()}") / card.name / card.version
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file, expected in card.files.items():
        if not (folder / file).is_file() or _digest((folder / file).read_bytes()) != expected:
            data = _read(join(canonical(registry), card.name, card.version, file))
            _check(data, expected, f"{card.id}/{file}")
            _replace_file(folder / file, data)
    try:
        return load_model(folder, device)
    except Exception as error:  # a damaged safetensors header, a run of another version of rayters
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(f"{card.id} cannot be loaded ({type(error).__name__}: {str(error)[:200]})") from error


def _describe(model: Model, name: str, files: dict[str, str]) -> Card:
    return Card(
        name=name,
        classes=model.classes,
        annotators=model.annotators,
        axes=model.task.axes,
        channels=model.task.channels,
        method=type(model.run.method).__name__,
        gaze=type(model.run.gaze).__name__,
        measured={key: float(value) for key, value in model.measured.items()},
        files=files,
    )


def _create(url: str, data: bytes) -> None:
    """Writes what is not there yet; the same bytes twice are one publication that was interrupted or repeated."""
    try:
        create_bytes(url, data)
    except ConflictError:
        if not url.endswith("card.json") and read_bytes(url) != data:
            raise ModelError(f"{url} is there with other content: remove that version, then publish again") from None


def _read(url: str) -> bytes:
    fs, path = filesystem(url)
    with store_errors(url):
        fs.invalidate_cache()
        return bytes(fs.cat_file(path))


def _check(data: bytes, expected: str, what: str) -> None:
    if (seen := _digest(data)) != expected:
        raise ModelError(f"{what} has SHA-256 {seen[:12]}..., its card says {expected[:12]}...: it is not loaded")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _replace_file(path: Path, data: bytes) -> None:
    handle, draft = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(draft, path)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
