"""A run whose list of checkpoints was cut off. Ray writes that list in place, so a disk that is full at the wrong moment leaves it empty,
and Ray then refuses the run although its checkpoints are whole.
"""

import json
import tempfile
from pathlib import Path

from casebook import CasebookError
from casebook.location import exists, join, list_names, read_bytes, remove
from rayters.training.model import load_model, load_state

LIST = "checkpoint_manager_snapshot.json"
FILES = ("run.json", "weights.safetensors", "state.pt")


def salvage(folder: str) -> str | None:
    """The newest whole checkpoint of a run that has lost its list, which is removed so that Ray begins another. None: nothing is lost,
    or nothing can be saved.

    folder: of the run, a path or URL.
    """
    if _readable(join(folder, LIST)) or not exists(folder):
        return None
    found = next((url for url in _newest_first(folder) if _is_whole(url)), None)
    remove(join(folder, LIST))
    return found


def _readable(url: str) -> bool:
    try:
        json.loads(read_bytes(url))
    except (CasebookError, ValueError):
        return False
    return True


def _newest_first(folder: str) -> list[str]:
    """A checkpoint's name is the time at which it was made."""
    names = sorted((name for name in list_names(folder) if name.startswith("checkpoint_2")), reverse=True)
    return [join(folder, name) for name in names]


def _is_whole(checkpoint: str) -> bool:
    """Whether a copy of it can be loaded."""
    with tempfile.TemporaryDirectory(prefix="rayters-salvage-") as local:
        try:
            for name in FILES:
                (Path(local) / name).write_bytes(read_bytes(join(checkpoint, name)))
            load_model(local)
            load_state(Path(local))
        except Exception:  # whatever a library makes of half a file
            return False
    return True
