"""Every method on one cohort, and a population of trainings: small, but for real."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casebook import Cohort, Layer, describe_case, open_cohort, write_case, write_cohort
from rayters.methods import MajorityVote
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.training.run import Run
from rayters.tuning.space import Space
from rayters.tuning.trial import Bench, run_member

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import survey

RUN = Run(
    sampling=Sampling(patches_per_epoch=16),
    epochs=3,
    batch_size=8,
    patch_px=(32, 32),
    network=UNet(width=4, levels=3),
    restarts=0,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Bright squares; ann and ben draw them, ben a pixel wider; gold is what ann drew."""
    folder, rows = tmp_path_factory.mktemp("squares"), []
    for number, split in enumerate(("train", "train", "validation", "test", "test")):
        image = np.random.default_rng(number).integers(0, 60, (1, 64, 64)).astype(np.uint8)
        ann, ben = np.zeros((2, 64, 64), np.uint8)
        ann[16:40, 10 + number : 40] = 1
        ben[15:41, 9 + number : 41] = 1
        image[0, ann == 1] += 150
        layers = {Layer(id="ann"): ann, Layer(id="ben"): ben, Layer(id="gold", role="reference"): ann}
        case = write_case(
            folder / f"{number}.ome.zarr", image, spacing_um=(1.0, 1.0), classes=("background", "square"), layers=layers
        )
        rows.append(describe_case(case, split=split, group=str(number)))
    write_cohort(folder, rows, name="squares", classes=("background", "square"), reference="gold")
    return open_cohort(str(folder))


def test_a_member_of_a_population_goes_on_from_a_state_as_if_it_had_never_stopped(cohort: Cohort) -> None:
    bench = Bench(cohort=cohort, space=Space(methods=(MajorityVote,), only=("dice",)), base=RUN)
    trial, states = {"candidate": bench.space.default(MajorityVote), "seed": 0}, {}
    whole = run_member(trial, bench, lambda epoch, score, state: states.update({epoch: (score, state)}), None)
    assert list(states) == [1, 2]  # after the last epoch there is nothing to go on with
    assert states[1][0] == whole["curve"][0]
    gone_on = run_member(trial, bench, lambda *_: None, states[1][1])
    assert gone_on["curve"] == whole["curve"][1:]
    assert gone_on["dice"] == whole["dice"]
    other = {"candidate": trial["candidate"] | {"MajorityVote.dice": 0.0}, "seed": 0}
    assert run_member(other, bench, lambda *_: None, states[1][1])["curve"] != whole["curve"][1:]  # its own numbers


@pytest.mark.usefixtures("ray_session")
def test_a_survey_measures_every_method_and_trains_none_twice(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "connected", lambda cpus: nullcontext())  # to the session's Ray
    job = survey.Job(
        cohort=cohort.url,
        methods=("majority-vote", "t-loss"),
        seeds=1,
        storage=tmp_path,
        run=RUN,
        json=str(tmp_path / "rows.json"),
    )
    survey.main(job)
    out = capsys.readouterr().out
    assert "Dice with the reference 'gold', 2 patients of the test split, 1 seeds" in out
    assert "Dice with the annotators" in out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["row"] for row in rows][:2] == [
        "MajorityVote / MajorityVote, Dice with the reference",
        "TLoss / MajorityVote, Dice with the reference",
    ]
    assert rows[0]["ratio"] == 1
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    survey.main(replace(job, json=None))
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert {name for name in before if before[name] != after[name]} == {"survey.json"}
    with pytest.raises(ValueError, match="give another --storage"):
        survey.main(replace(job, dice=0.5))
