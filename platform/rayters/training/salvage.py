"""A run whose list of checkpoints was cut off. Ray writes that list in place, so a disk that is full at the wrong moment leaves it empty,
and Ray then refuses the run although its checkpoints are whole.
"""

import tempfile
from pathlib import Path

from casebook import CaseFormatError, CaseNotFoundError
from casebook.errors import StoreError
from casebook.location import exists, join, list_names, read_bytes, read_json, remove
from rayters.training.model import Model, load_model, load_state

LIST = "checkpoint_manager_snapshot.json"
FILES = ("run.json", "weights.safetensors", "state.pt")


def salvage(folder: str) -> str | None:
    """The newest whole checkpoint of a run that has lost its list, which is removed so that Ray begins another. None: nothing is lost,
    or nothing can be saved.

    folder: of the run, a path or URL.

    Raises:
        StoreError: the store does not answer; nothing was removed.
    """
    if _readable(join(folder, LIST)) or not exists(folder):
        return None
    found = next((url for url in checkpoints(folder) if whole_model(url)), None)
    remove(join(folder, LIST))
    return found


def _readable(url: str) -> bool:
    try:
        read_json(url)
    except (CaseNotFoundError, CaseFormatError):
        return False
    return True


def checkpoints(folder: str) -> list[str]:
    """Of a run, whole or cut off, newest first: their names are the times at which they were made."""
    names = sorted((name for name in list_names(folder) if name.startswith("checkpoint_2")), reverse=True)
    return [join(folder, name) for name in names]


def whole_model(checkpoint: str) -> Model | None:
    """The model of a checkpoint from which a training can go on; None where the upload was cut off."""
    with tempfile.TemporaryDirectory(prefix="rayters-salvage-") as local:
        try:
            for name in FILES:
                (Path(local) / name).write_bytes(read_bytes(join(checkpoint, name)))
            load_state(Path(local))
            return load_model(local)
        except StoreError:
            raise
        except Exception:  # whatever a library makes of half a file
            return None
