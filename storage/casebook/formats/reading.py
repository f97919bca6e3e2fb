"""What image libraries raise, in words: they end a damaged file with anything from struct.error to SyntaxError."""

from collections.abc import Iterator
from contextlib import contextmanager

from casebook.errors import CasebookError, CaseFormatError


@contextmanager
def reading(file: str = "the file") -> Iterator[None]:
    """Turns whatever an image library raises on a damaged file into a casebook error that calls it `file`."""
    try:
        yield
    except CasebookError:
        raise
    except ImportError as error:
        raise CaseFormatError(
            f"{error.name or error} is needed for this format: pip install 'rayters[formats]'"
        ) from error
    except MemoryError as error:
        raise CaseFormatError(
            f"{file} claims more pixels than fit into memory: convert it to a tiled format"
        ) from error
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:160]
        raise CaseFormatError(
            f"{file} cannot be read ({type(error).__name__}: {text}): restore it or export it again"
        ) from error
