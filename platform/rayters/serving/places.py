"""Which cases may be read at all: those of the cohorts that the server was started with, by name or by URL, and nothing else.

A URL of a request never reaches a file system before it was found inside a root: no other host (SSRF), no other bucket, no `..`, no
symbolic link that leaves the root, none of fsspec's chained URLs.
"""

import os
import re
import time
from collections.abc import Callable

from casebook import Case, CasebookError, CaseRow, Cohort, open_case, open_cohort
from casebook.location import canonical, is_local, last_name, parent
from rayters.serving.refusal import RefusedError

_STRANGE = re.compile(r"(^|/)\.\.?(/|$)|\\|%|\?|#|::|[\x00-\x1f\x7f]|(?<!:)//")
OPEN_AGAIN_S = 10.0  # a cohort or a case that others change is seen changed after so long
MOST_OPEN = 1000
NOT_HERE = "this server does not serve that case: ask GET /v1/cohorts for those that it does"


class Places:
    """The cohorts of a server, by name."""

    def __init__(self, cohorts: tuple[str, ...], *, clock: Callable[[], float] = time.monotonic) -> None:
        """cohorts: URLs; the last part of each is its name.

        Raises:
            ValueError: two cohorts of one name.
        """
        self.roots: dict[str, str] = {}
        for url in cohorts:
            root = canonical(url)
            root = parent(root) if root.endswith(".parquet") else root
            if self.roots.setdefault(last_name(root), root) != root:
                raise ValueError(f"two cohorts are named {last_name(root)!r}: copy or rename one of them")
        self.clock = clock
        self._open: dict[str, tuple[float, Cohort]] = {}
        self._cases: dict[str, tuple[float, Case]] = {}

    def cohort(self, name: str) -> Cohort:
        """The cohort of this name; its table is read again after some seconds.

        Raises:
            RefusedError: 404 for a name that is not served, 502 when its store does not answer.
        """
        if name not in self.roots:
            raise RefusedError(status=404, detail=f"no such cohort: known are {', '.join(self.roots) or 'none'}")
        then, cohort = self._open.get(name, (float("-inf"), None))
        if cohort is None or self.clock() - then > OPEN_AGAIN_S:
            try:
                cohort = open_cohort(self.roots[name])
            except CasebookError:
                raise RefusedError(status=502, detail=f"the store of cohort {name!r} did not give its table") from None
            self._open[name] = (self.clock(), cohort)
        return cohort

    def row(self, cohort: str, case: str) -> CaseRow:
        """The row of a case; the table itself may not point outside of the roots either.

        Raises:
            RefusedError: 404.
        """
        for row in self.cohort(cohort).cases:
            if row.case == case:
                self.inside(row.url)
                return row
        raise RefusedError(status=404, detail=f"cohort {cohort!r} has no such case")

    def case(self, wanted: str) -> Case:
        """A case by 'cohort/case' or by the URL under one of the roots.

        Raises:
            RefusedError: 404 for all that is not there or may not be read, which are not told apart.
        """
        cohort, _, name = wanted.partition("/")
        url = self.row(cohort, name).url if cohort in self.roots else self.inside(wanted)
        then, case = self._cases.get(url, (float("-inf"), None))
        if case is None or self.clock() - then > OPEN_AGAIN_S:
            try:
                case = open_case(url)
            except CasebookError:
                raise RefusedError(status=404, detail=NOT_HERE) from None
            if len(self._cases) >= MOST_OPEN:
                self._cases.clear()
            self._cases[url] = (self.clock(), case)
        return case

    def find(self, wanted: str) -> tuple[str, CaseRow]:
        """The URL of the cohort that lists a case, and its row there; by 'cohort/case' or by the case's URL.

        Raises:
            RefusedError: 404.
        """
        cohort, _, name = wanted.partition("/")
        if cohort in self.roots:
            return self.roots[cohort], self.row(cohort, name)
        place = self.inside(wanted)
        for cohort, root in self.roots.items():
            for row in self.cohort(cohort).cases:
                if canonical(row.url) == place:
                    return root, row
        raise RefusedError(status=404, detail=NOT_HERE)

    def inside(self, url: str) -> str:
        """The URL itself, canonical, when it lies under a root.

        Raises:
            RefusedError: 404.
        """
        if len(url) > 2048 or _STRANGE.search(url):
            raise RefusedError(status=404, detail=NOT_HERE)
        try:
            place = canonical(url)
        except CasebookError:
            raise RefusedError(status=404, detail=NOT_HERE) from None
        for root in self.roots.values():
            if place.startswith(root + "/") and (not is_local(place) or _stays(place, root)):
                return place
        raise RefusedError(status=404, detail=NOT_HERE)


def _stays(place: str, root: str) -> bool:
    """Whether a local path is still inside its root once symbolic links are followed."""
    return os.path.realpath(place).startswith(os.path.realpath(root) + os.sep)
