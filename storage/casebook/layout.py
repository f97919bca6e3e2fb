"""Which file is the image of which case, and which file is whose drawing of it.

Two patterns say it, relative to the folder; `{case}` may span sub-folders, a repeated field must repeat its value,
`*` is free:

    --images "{case}.jpg"            --labels "{case}_{annotator}.png"
    --images "{case}/image.nii.gz"   --labels "{case}/{annotator}.nii.gz"
    --images "{split}/images/{case}.tif" --labels "{split}/{annotator}/{case}.tif"
    --images "ct/{case}.nrrd"        --labels "{annotator}/{case}/{class}.nrrd"     (one binary mask per class)

Without patterns the three usual layouts are recognised.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from casebook.errors import CaseFormatError
from casebook.location import safe_name

FIELDS = ("case", "annotator", "split", "class")
SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "validate": "validation", "val": "validation",
    "valid": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
SUFFIXES = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".ome.tif", ".ome.tiff", ".tif", ".tiff"),
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms"),
    *(".dcm", ".seg", ".geojson", ".ome.zarr", ".zarr"),
)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One file of one annotator; `label_class` when the file holds one class only."""

    annotator: str
    path: str
    label_class: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoundCase:
    """What belongs together; paths relative to the folder."""

    case: str
    image: str
    drawings: tuple[Drawing, ...]
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The cases of a folder, and the files of a known kind that belong to none."""

    cases: tuple[FoundCase, ...]
    unused: tuple[str, ...] = ()
    patterns: tuple[str, str] = field(default=("", ""))


def stem(path: str) -> str:
    """The name without its folder and its (possibly double) suffix."""
    name = path.rpartition("/")[2]
    return name[: -len(suffix(path))] if suffix(path) else name


def suffix(path: str) -> str:
    """The known suffix of a path, lower case, '' when it has none."""
    low = path.lower()
    return next((s for s in SUFFIXES if low.endswith(s)), "")


def match_files(paths: Sequence[str], images: str | None, labels: str | None, skip: Sequence[str] = ()) -> Found:
    """Sorts the files of a folder into cases.

    images, labels: patterns; both None guesses. skip: glob patterns of annotators to leave out.

    Raises:
        CaseFormatError: nothing matches, or a pattern has no {case}, or two files claim the same place.
    """
    if images is None and labels is None:
        images, labels = guess_patterns(paths)
    elif images is None or labels is None:
        raise CaseFormatError("give both --images and --labels, or neither: one alone leaves the other to chance")
    for pattern, needed in ((images, ("case",)), (labels, ("case", "annotator"))):
        _check_pattern(pattern, needed)
    found = _match_images(paths, images, labels)
    if not found:
        raise CaseFormatError(
            f"no file matches --images {images!r}; the first files are {', '.join(sorted(paths)[:3])}"
        )
    taken = {path for path, _ in found.values()}
    drawings: dict[str, list[Drawing]] = {case: [] for case in found}
    for path in sorted(set(paths) - taken):
        if (hit := _match_label(path, labels, found)) is None:
            continue
        taken.add(path)
        if not any(fnmatch.fnmatchcase(hit["annotator"], pattern) for pattern in skip):
            drawings[hit["case"]].append(
                Drawing(annotator=safe_name(hit["annotator"]), path=path, label_class=hit.get("class"))
            )
    _check_unique(drawings)
    cases = tuple(
        FoundCase(case=safe_name(case.replace("/", "-")), image=path, drawings=tuple(drawings[case]), split=split)
        for case, (path, split) in sorted(found.items())
    )
    unused = tuple(path for path in sorted(set(paths) - taken) if suffix(path))
    return Found(cases=cases, unused=unused, patterns=(images, labels))


def guess_patterns(paths: Sequence[str]) -> tuple[str, str]:
    """The patterns of the three usual layouts: a folder per case, a folder per annotator, a suffix per annotator."""
    known = [path for path in paths if suffix(path)]
    for path in known:
        if stem(path).lower() in ("image", "img", "ct", "mr", "slide") and "/" in path:
            return "{case}/" + stem(path) + ".*", "{case}/{annotator}.*"
    for path in known:
        folder = path.rpartition("/")[0]
        if folder.rpartition("/")[2].lower() in ("image", "images", "img", "imgs"):
            inside = folder.rpartition("/")[0]
            start = inside + "/" if inside else ""
            return folder + "/{case}.*", start + "{annotator}/{case}.*"
    stems = {path[: -len(suffix(path))] for path in known}
    for name in sorted(stems):
        for separator in ("_", "-", "."):
            if any(other.startswith(name + separator) for other in stems):
                return "{case}.*", "{case}" + separator + "{annotator}.*"
    raise CaseFormatError(
        f"the layout of these {len(known)} images is not one of the usual ones: name it with --images and "
        "--labels, as in "
        '--images "{case}.png" --labels "{annotator}/{case}.png"'
    )


def _check_pattern(pattern: str, needed: tuple[str, ...]) -> None:
    fields = re.findall(r"\{(.*?)\}", pattern)
    if unknown := set(fields) - set(FIELDS):
        known = ", ".join("{" + name + "}" for name in FIELDS)
        raise CaseFormatError(f"pattern {pattern!r} has {sorted(unknown)}: {known} are known")
    if missing := set(needed) - set(fields):
        raise CaseFormatError(f"pattern {pattern!r} lacks {', '.join('{' + m + '}' for m in sorted(missing))}")


def _regex(pattern: str, greedy: str, case: str | None = None) -> re.Pattern[str]:
    """A pattern as a regular expression; `greedy` ('?' or '') decides how far {case} reaches, or `case` is it."""
    parts, seen = [], set()
    for text in re.split(r"(\{\w+\}|\*)", pattern):
        if text == "*":
            parts.append(r"[^/]*")
        elif re.fullmatch(r"\{\w+\}", text):
            name = text[1:-1]
            body = (case or f".+{greedy}") if name == "case" else r"[^/]+?"
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{body})")
            seen.add(name)
        else:
            parts.append(re.escape(text))
    return re.compile("".join(parts))


def _match_images(paths: Sequence[str], pattern: str, labels: str) -> dict[str, tuple[str, str | None]]:
    """Case -> (path, split). A file that also is a drawing of another ('a_anna.png' beside 'a.png') is no image."""
    regex = _regex(pattern, "")
    matches = ((path, regex.fullmatch(_bare(path, pattern))) for path in sorted(paths) if suffix(path))
    hits = [(match["case"], path, match.groupdict().get("split")) for path, match in matches if match]
    if pattern.rpartition("/")[2].startswith("{case}"):
        names: dict[str, tuple[str, str | None]] = {case: (path, split) for case, path, split in hits}
        hits = [h for h in hits if (_match_label(h[1], labels, names) or {"case": h[0]})["case"] == h[0]]
    found: dict[str, tuple[str, str | None]] = {}
    for case, path, split in hits:
        if split is not None and split.lower() not in SPLIT_NAMES:
            raise CaseFormatError(f"{path}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}")
        key = case if split is None or case not in found else f"{split}/{case}"
        if key in found:
            raise CaseFormatError(
                f"{found[key][0]} and {path} are both the image of case {key!r}: make --images tell them apart"
            )
        found[key] = (path, SPLIT_NAMES[split.lower()] if split else None)
    return found


def _bare(path: str, pattern: str) -> str:
    """With a free suffix in the pattern ('.*'), the double suffix .nii.gz counts as one."""
    return path[: -len(suffix(path))] + ".x" if pattern.endswith(".*") and suffix(path) else path


def _match_label(path: str, pattern: str, found: Mapping[str, tuple[str, str | None]]) -> dict[str, str] | None:
    if not suffix(path):
        return None
    bare = _bare(path, pattern)
    tries = [_regex(pattern, "?"), _regex(pattern, "")]
    if not tries[0].fullmatch(bare):
        return None
    if not any((match := regex.fullmatch(bare)) and match["case"] in found for regex in tries):
        inside = sorted((case for case in found if case in path), key=len, reverse=True)
        tries = [_regex(pattern, "", re.escape(case)) for case in inside]
    for regex in tries:
        match = regex.fullmatch(bare)
        if match and match["case"] in found:
            return {key: value for key, value in match.groupdict().items() if value is not None}
    return None


def _check_unique(drawings: Mapping[str, Sequence[Drawing]]) -> None:
    for case, list_ in drawings.items():
        seen: dict[tuple[str, str | None], str] = {}
        for drawing in list_:
            key = (drawing.annotator.lower(), drawing.label_class)
            if key in seen:
                raise CaseFormatError(
                    f"{seen[key]} and {drawing.path} are both {drawing.annotator!r} on {case!r}: make --labels "
                    "tell them apart"
                )
            seen[key] = drawing.path
