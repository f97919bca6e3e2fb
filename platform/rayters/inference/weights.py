"""A model as bytes: read once, where its URL can be reached, and rebuilt wherever it is needed."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from casebook.location import canonical, join, read_bytes
from rayters.training.model import Model, load_model

FILES = ("run.json", "weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The two files of a model."""

    files: tuple[bytes, bytes]

    def unpack(self, device: torch.device | str = "cpu") -> Model:
        """The model, ready to predict."""
        with tempfile.TemporaryDirectory(prefix="rayters-model-") as folder:
            for name, data in zip(FILES, self.files, strict=True):
                Path(folder, name).write_bytes(data)
            return load_model(folder, device)


def pack(urls: Sequence[str]) -> tuple[Packed, ...]:
    """Models from folders or URLs, as jobs/train.py prints them.

    Raises:
        CaseNotFoundError: there is no model. CasebookError: the store did not answer.
    """
    return tuple(Packed(files=(_read(url, FILES[0]), _read(url, FILES[1]))) for url in urls)


def _read(url: str, name: str) -> bytes:
    return read_bytes(join(canonical(url), name))
