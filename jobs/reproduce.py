"""Run the rows of a paper's table again, and put the paper's figure beside ours.

    python jobs/reproduce.py mnist                      Zhang et al. 2020, whom to believe; some hours on two cores, minutes on a cluster
    python jobs/reproduce.py mnist --quick              the same rows on 300 digits, to see that all is well
    python jobs/reproduce.py mnist --only ours paper    some rows; results already measured are re-used, so a killed job goes on
    python jobs/reproduce.py foveation                  Jin et al. 2020, what to look at, where fine and coarse texture decide by turns
    python jobs/reproduce.py cells                      Felfeliyan et al. 2022 and Shi & Wu 2021, on a crowd's drawings with noise on top
    python jobs/reproduce.py lidc (or vessels)          the same on radiologists' nodules, on two observers of the retina

Trials run on the Ray cluster that is found, or on this machine. Every row is the mean over seeds, with its spread.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from casebook import CasebookError
from rayters.reports.rows import rows_table, table, write_rows
from rayters.training.connect import connected
from rayters.tuning.sweep import run_trials
from reproduce_foveation import Foveation
from reproduce_mnist import Mnist
from reproduce_noise import Cells, Lidc, Vessels
from reproduce_pairs import compared, pairs_table
from reproduce_study import Study

COLUMNS = {
    "dice": "Dice", "sd": "sd", "worst": "worst", "of_ceiling": "/ ceiling", "paper": "paper",
    "of_best_fixed": "/ best fixed", "paper_of_best_fixed": "paper's / its best fixed",
    "rmse": "RMSE", "paper_rmse": "paper's RMSE", "rank": "Spearman", "astray": "said astray",
    "ece": "ECE", "brier": "Brier", "nll": "NLL", "seconds": "s",
}  # fmt: skip
Command = (
    Annotated[Mnist, tyro.conf.subcommand("mnist")]
    | Annotated[Foveation, tyro.conf.subcommand("foveation")]
    | Annotated[Cells, tyro.conf.subcommand("cells")]
    | Annotated[Lidc, tyro.conf.subcommand("lidc")]
    | Annotated[Vessels, tyro.conf.subcommand("vessels")]
)


def main(study: Study) -> None:
    """Runs what is missing, prints the table, writes it where asked."""
    _check(study)
    study = study.hurried() if study.quick else study
    trials, data = study.trials(), study.data()
    with connected(cpus=study.max_cpus):
        results = run_trials(study.measure, trials, Path(study.storage), data=data, cpus=study.cpus, gpus=study.gpus)
    measured = [(trial, result) for trial, result in zip(trials, results, strict=True) if result]
    lines, paired = study.lines(measured), compared(measured, study.pairs())
    rows = study.rows(lines)
    print("\n\n".join([_table(lines), pairs_table(paired), rows_table(rows)]))
    if lost := sum(result is None for result in results):
        print(f"{lost} of {len(trials)} trials failed; run the same command again", file=sys.stderr)
    if study.json:
        write_rows(rows, study.json)
    if study.record:
        Path(study.record).write_text(
            json.dumps(study.about() | _circumstances() | {"rows": lines, "paired": paired}, indent=1) + "\n"
        )
    if study.picture:
        from reproduce_picture import paint

        paint(study.picture, lines, title=study.about()["experiment"])


def _check(study: Study) -> None:
    """Raises:
    ValueError: a row or a setting that the experiment has not.
    """
    every = type(study)()
    for name in ("only", "settings"):
        known = getattr(every, name, ())
        if strange := [each for each in getattr(study, name, ()) if each not in known]:
            raise ValueError(f"--{name} {', '.join(strange)}: known are {', '.join(known)}")


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    shown = [name for name in COLUMNS if any(line.get(name) is not None for line in lines)]
    cells = [
        [f"{line['setting']}: {line['title']} ({line['seeds']})", *(_number(line.get(name)) for name in shown)]
        for line in lines
    ]
    return table(["row (seeds)", *(COLUMNS[name] for name in shown)], cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 10 else f"{value:.0f}"


def _circumstances() -> dict[str, Any]:
    """When, where and with what the figures were measured; of a cluster, the machine that asked."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "monai", "ray")}
    return {
        "command": " ".join(["python jobs/reproduce.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": packages | {"python": platform.python_version()},
        "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, {_gpu()}",
    }


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    try:
        main(tyro.cli(Command, description=__doc__))  # type: ignore[arg-type]
    except (CasebookError, OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
