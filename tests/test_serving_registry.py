"""The registry: what may be served, and what is refused."""

import json
import pickle
import threading
from pathlib import Path

import pytest
import torch

from rayters.serving.registry import (
    ModelError,
    current,
    fetch,
    names,
    promote,
    publish,
    read_card,
    versions,
)


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "models") if request.param == "folder" else f"memory://{tmp_path.name}/models"


def test_what_was_published_and_promoted_is_what_is_loaded(registry: str, tiny_model: Path, tmp_path: Path) -> None:
    card = publish(registry, "digits", tiny_model, spacing_um=(0.5, 0.5))
    assert names(registry) == []  # published is not promoted
    promote(registry, "digits", card.version)
    assert names(registry) == ["digits"]
    assert current(registry, "digits") == card
    model = fetch(registry, card, cache=str(tmp_path / "cache"))
    assert (model.classes, card.annotators, card.spacing_um) == (("background", "digit"), ("anna", "ben"), (0.5, 0.5))
    assert not model.net.training


def test_the_same_model_is_the_same_version_and_another_is_another(
    registry: str, tiny_model: Path, another_tiny_model: Path
) -> None:
    first = publish(registry, "digits", tiny_model)
    assert publish(registry, "digits", tiny_model) == first
    assert publish(registry, "digits", another_tiny_model).version != first.version
    assert len(versions(registry, "digits")) == 2


def test_a_promoted_version_gives_way_to_another_and_back(
    registry: str, tiny_model: Path, another_tiny_model: Path
) -> None:
    old, new = publish(registry, "m", tiny_model), publish(registry, "m", another_tiny_model)
    for card in (old, new, old):
        promote(registry, "m", card.version)
        assert current(registry, "m").version == card.version


def test_a_changed_weight_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    registry = str(tmp_path)
    card = publish(registry, "m", tiny_model)
    promote(registry, "m", card.version)
    weights = tmp_path / "m" / card.version / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ModelError, match=r"weights.safetensors has SHA-256 .* it is not loaded"):
        fetch(registry, card, cache=str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="not loaded"):
        promote(registry, "m", card.version)


def test_a_changed_copy_on_this_machine_is_fetched_again(tiny_model: Path, tmp_path: Path) -> None:
    card = publish(str(tmp_path / "r"), "m", tiny_model)
    fetch(str(tmp_path / "r"), card, cache=str(tmp_path / "cache"))
    copy = tmp_path / "cache" / "m" / card.version / "weights.safetensors"
    copy.write_bytes(b"changed")
    fetch(str(tmp_path / "r"), card, cache=str(tmp_path / "cache"))
    assert copy.read_bytes() == (tiny_model / "weights.safetensors").read_bytes()


def test_a_changed_card_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    card = publish(str(tmp_path), "m", tiny_model)
    promote(str(tmp_path), "m", card.version)
    place = tmp_path / "m" / card.version / "card.json"
    place.write_text(place.read_text().replace("digit", "tumour"))
    with pytest.raises(ModelError, match="does not match its checksum"):
        current(str(tmp_path), "m")


class Explosive:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(tiny_model: Path, tmp_path: Path) -> None:
    # The checksums are made to fit: only the format itself stands between the file and the process.
    checkpoint, bang = tmp_path / "checkpoint", tmp_path / "bang"
    checkpoint.mkdir()
    (checkpoint / "run.json").write_bytes((tiny_model / "run.json").read_bytes())
    for poison in (pickle.dumps(Explosive(str(bang))), _torch_pickle(Explosive(str(bang)), tmp_path)):
        (checkpoint / "weights.safetensors").write_bytes(poison)
        with pytest.raises(Exception, match=r"(?i)header|safetensors"):
            publish(str(tmp_path / "r"), "m", checkpoint)
        card = _card_for(poison, tiny_model, tmp_path / "r2")
        with pytest.raises(ModelError, match="cannot be loaded"):
            fetch(str(tmp_path / "r2"), card, cache=str(tmp_path / "cache"))
    assert not bang.exists()


def _torch_pickle(thing: object, folder: Path) -> bytes:
    torch.save(thing, folder / "x.pt")
    return (folder / "x.pt").read_bytes()


def _card_for(weights: bytes, model: Path, registry: Path):
    """A registry whose card truthfully names the checksum of a poisoned file."""
    import hashlib
    from dataclasses import asdict, replace

    card = publish(str(registry), "m", model)
    files = {**card.files, "weights.safetensors": hashlib.sha256(weights).hexdigest()}
    card = replace(card, files=files)
    card = replace(card, version=card.checksum[:12])
    place = registry / "m" / card.version
    place.mkdir(exist_ok=True)
    (place / "run.json").write_bytes((model / "run.json").read_bytes())
    (place / "weights.safetensors").write_bytes(weights)
    (place / "card.json").write_text(json.dumps(asdict(card)))
    return read_card(str(registry), "m", card.version)


@pytest.mark.parametrize("name", ["../m", "a/b", "", "..", "m\x00", "/etc"])
def test_a_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a folder name"):
        current(str(tmp_path), name)
    with pytest.raises(ValueError, match="cannot be a folder name"):
        read_card(str(tmp_path), "m", name)


def test_a_reader_during_promotions_always_sees_a_whole_version(
    tiny_model: Path, another_tiny_model: Path, tmp_path: Path
) -> None:
    cards = [publish(str(tmp_path), "m", folder) for folder in (tiny_model, another_tiny_model)]
    promote(str(tmp_path), "m", cards[0].version)
    done = threading.Event()

    def flip() -> None:
        for turn in range(30):
            promote(str(tmp_path), "m", cards[turn % 2].version)
        done.set()

    writer = threading.Thread(target=flip)
    writer.start()
    while not done.is_set():
        assert current(str(tmp_path), "m").version in {card.version for card in cards}
    writer.join()


def test_a_model_that_is_not_there_is_said_with_those_that_are(tiny_model: Path, tmp_path: Path) -> None:
    card = publish(str(tmp_path), "digits", tiny_model)
    promote(str(tmp_path), "digits", card.version)
    with pytest.raises(ModelError, match="known are digits"):
        current(str(tmp_path), "vessels")
