"""The work of predicting cohorts, apart from who does it: which blocks there are, how one is done, what ends a case.

    to_do(work, case, url) --> rows, one for each block --> Blocks: read ahead | look | write behind --> rows --> finish_case(...)

A row holds names and a number; pixels never travel. Every block owns whole chunks, is a pure function of the case, the model and its
own number, and leaves a marker: so a lost node, a killed job and a run from start to end give the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from casebook import Case, CasebookError, CaseRow, Cohort, describe_case, open_case
from casebook.joint import JointPlan, begin, finish, is_finished, is_written, write_joint
from rayters.inference.predict import Tiles, kinds, look, members_of, read_tiles, tissue_of
from rayters.inference.tiling import Tiling
from rayters.inference.weights import Packed
from rayters.inference.writing import Output, Speech, coded, plan_output, speech_of
from rayters.patches.ahead import map_ahead
from rayters.training.model import Model

LARGE_PX = 4096  # a coloured picture longer than this is a slide, and may have empty glass
BLOCKS_PER_CALL = 2  # the next is read, and the last written, while one is looked at
Told = (CasebookError, ValueError, OSError)  # what goes wrong with one case and is told of it; the others go on
BlockRow = dict[str, Any]  # case, url, block, of (blocks of the case), state, pixels (level 0, predicted now), error


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a process must know to predict any block of a cohort, without the weights.

    folder: of the cohort. skip_glass: None decides by the case.
    """

    speech: Speech
    folder: str
    tiling: Tiling
    output: Output
    skip_glass: bool | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of one case. row: in a cohort of predictions; pixels: of level 0, that were predicted now."""

    case: str
    state: str  # predicted, left alone, failed
    pixels: int = 0
    error: str = ""
    row: CaseRow | None = None


def plan_work(
    packed: Sequence[Packed], cohort: Cohort, *, tiling: Tiling, output: Output, skip_glass: bool | None = None
) -> Work:
    """What there is to do.

    Raises:
        ValueError: when the model does not fit the cohort, or the members of an ensemble differ.
    """
    members = members_of(tuple(each.unpack() for each in packed))
    _check(members[0], cohort, output)
    weights = b"".join(data for each in packed for data in each.files)
    speech = speech_of(members[0], kinds(members, tiling), tiling, weights)
    return Work(speech=speech, folder=cohort.url, tiling=tiling, output=output, skip_glass=skip_glass)


def _check(model: Model, cohort: Cohort, output: Output) -> None:
    if output.to is None and model.classes != cohort.classes:
        raise ValueError(
            f"the model speaks of the classes {', '.join(model.classes)}, cohort '{cohort.name}' of {', '.join(cohort.classes)}: "
            "take a model of this cohort, or write into a cohort of its own with --to"
        )
    if strange := [row for row in cohort.cases if row.channels != model.task.channels]:
        raise ValueError(
            f"the model was trained on {model.task.channels} channels, {len(strange)} of {len(cohort.cases)} cases have others, the "
            f"first is {strange[0].case!r} with {strange[0].channels}: take a model of such images"
        )


def to_do(work: Work, name: str, url: str) -> list[BlockRow]:
    """All blocks of a case, also those that are written already, or one row that says why there is none.

    Were the written ones left out here, the rows would depend on when this is called; and Ray calls it again when a node is lost.
    """
    base = {"case": name, "url": url, "block": 0, "of": 1, "state": "predicted", "pixels": 0, "error": ""}
    try:
        plan = plan_output(work.speech, open_case(url), name, work.folder, work.output)
        if is_finished(plan):
            return [base | {"state": "left alone"}]
        begin(plan)
    except Told as error:
        return [base | {"state": "failed", "error": str(error)}]
    return [base | {"block": block, "of": len(plan.blocks), "state": "to do"} for block in range(len(plan.blocks))]


class Blocks:
    """An ensemble in memory, and what it has seen of the cases: reads ahead, looks, and writes behind."""

    def __init__(self, work: Work, members: tuple[Model, ...]) -> None:
        self.work, self.members = work, members
        self.plans: dict[str, tuple[Case, JointPlan]] = {}

    def __call__(self, rows: Sequence[BlockRow]) -> list[BlockRow]:
        """Does the rows that are to do, passes the others on; all is written when it returns."""
        with ThreadPoolExecutor(1, thread_name_prefix="rayters-write") as writer:
            reads = map_ahead(self._read, rows, threads=1, ahead=1)
            waiting = [self._look(row, read, writer) for row, read in zip(rows, reads, strict=True)]
            return [wait() for wait in waiting]

    def _read(self, row: BlockRow) -> list[Tiles] | Exception | None:
        if row["state"] != "to do":
            return None
        try:
            case, plan = self._plan(row)
            if is_written(plan, int(row["block"])):
                return None
            origin, size = plan.blocks[int(row["block"])]
            box = (origin, tuple(o + s for o, s in zip(origin, size, strict=True)))
            skip = is_slide(case) if self.work.skip_glass is None else self.work.skip_glass
            tissue = tissue_of(case) if skip else None
            return [read_tiles(member, case, box, self.work.tiling, tissue) for member in self.members]
        except Told as error:
            return error

    def _look(
        self, row: BlockRow, read: list[Tiles] | Exception | None, writer: ThreadPoolExecutor
    ) -> Callable[[], BlockRow]:
        """Begins to write what was seen; the result waits for it."""
        if read is None:
            done = row | {"state": "predicted"} if row["state"] == "to do" else row
            return lambda: done
        if isinstance(read, Exception):
            failed = row | {"state": "failed", "error": str(read)}
            return lambda: failed
        (_, plan), index = self._plan(row), int(row["block"])
        maps = look(self.members, read, self.work.tiling)
        pixels = int(maps.predicted.size) * self.work.speech.downsampling ** int(maps.predicted.ndim)
        blocks = coded(maps, self.work.speech, plan, index)
        return _written(row | {"pixels": pixels}, writer.submit(write_joint, plan, index, blocks))

    def _plan(self, row: BlockRow) -> tuple[Case, JointPlan]:
        name, work = str(row["case"]), self.work
        if name not in self.plans:
            case = open_case(str(row["url"]))
            self.plans[name] = case, plan_output(work.speech, case, name, work.folder, work.output)
        return self.plans[name]


def _written(row: BlockRow, writing: "Future[None]") -> Callable[[], BlockRow]:
    def wait() -> BlockRow:
        try:
            writing.result()
        except Told as error:
            return row | {"state": "failed", "error": str(error), "pixels": 0}
        return row | {"state": "predicted"}

    return wait


def is_slide(case: Case) -> bool:
    """Large, flat and coloured: then there may be empty glass."""
    return len(case.shapes[0]) == 2 and case.channels == 3 and max(case.shapes[0]) > LARGE_PX


def whole_cases(blocks: Iterable[BlockRow]) -> Iterator[Done]:
    """Each case once all of its blocks have come, in whatever order and however often: then it wants finishing, or is told of."""
    seen: dict[str, dict[int, BlockRow]] = {}
    for block in blocks:
        name, mine = str(block["case"]), seen.setdefault(str(block["case"]), {})
        if int(block["block"]) in mine:
            continue
        mine[int(block["block"])] = block
        if len(mine) == int(block["of"]):
            failed = [str(each["error"]) for each in mine.values() if each["state"] == "failed"]
            yield Done(
                case=name,
                state="failed" if failed else str(block["state"]),
                pixels=sum(int(each["pixels"]) for each in mine.values()),
                error=failed[0] if failed else "",
            )


def finish_case(work: Work, row: CaseRow, done: Done) -> Done:
    """The coarser levels and the documents of one case; its row in a cohort of predictions."""
    if done.state == "failed":
        return done
    try:
        plan = plan_output(work.speech, open_case(row.url), row.case, work.folder, work.output)
        if done.state != "left alone":
            finish(plan, about={"of": row.url, "by": work.speech.fingerprint})
        if work.output.to is None:
            return done
        mine = describe_case(open_case(plan.images[0].url), split=row.split, group=row.group)
        return replace(done, row=replace(mine, case=row.case))
    except Told as error:
        return replace(done, state="failed", error=str(error))


def predict_here(packed: Sequence[Packed], cohort: Cohort, work: Work, *, workers: int = 1) -> Iterator[Done]:
    """Predicts every case in this process, without Ray; yields each when it is finished.

    workers: blocks that are looked at at once, in threads; leave torch one thread each.
    """
    rows: Mapping[str, CaseRow] = {row.case: row for row in cohort.cases}
    predict = Blocks(work, members_of(tuple(each.unpack() for each in packed)))
    todo = chain.from_iterable(to_do(work, row.case, row.url) for row in cohort.cases)
    per_call = (
        1 if workers > 1 else BLOCKS_PER_CALL
    )  # a case of few blocks is work for all, and each overlaps the others' reads
    some = iter(lambda: list(islice(todo, per_call)), [])
    threads = workers if workers > 1 else 0
    blocks = chain.from_iterable(map_ahead(predict, some, threads=threads, ahead=workers))
    yield from (finish_case(work, rows[done.case], done) for done in whole_cases(blocks))
