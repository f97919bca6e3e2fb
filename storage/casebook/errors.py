"""What can go wrong with a casebook; each error says what was seen, what was expected, and what to do."""


class CasebookError(Exception):
    """Root of every error that the casebook raises on purpose."""


class CaseNotFoundError(CasebookError, FileNotFoundError):
    """Nothing readable as a case or a cohort lies at the URL."""


class CaseFormatError(CasebookError, ValueError):
    """Something is there, but its shape, dtype, values or metadata are not what the casebook promises."""


class CorruptChunkError(CasebookError, OSError):
    """The metadata is in order, but stored bytes cannot be decoded."""


class StoreError(CasebookError, OSError):
    """The store (disk, bucket, server) refused or did not answer; the message names the place, never a credential."""


class ConflictError(CasebookError, OSError):
    """Somebody else wrote the same thing at the same time; nothing of theirs was overwritten."""
