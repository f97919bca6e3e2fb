"""Training: the loop alone, the loop on Ray, and what survives a killed worker."""

import copy
import json
import os
import signal
import threading
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import ray
import torch

from casebook import CaseRow, Cohort, Layer, describe_case, write_case, write_cohort
from casebook.errors import StoreError
from rayters.annotators.digits import digit_sheets
from rayters.gaze import FixedGaze, FoveationGaze
from rayters.methods import AnnotatorConfusion, MajorityVote, MeanLabels, Method
from rayters.networks.backbone import UNet
from rayters.patches.resume import Leg
from rayters.patches.sampling import Sampling
from rayters.training.augmentation import Augmentation
from rayters.training.cluster import Crew, Reporter, Trained, train
from rayters.training.local import local_stream, train_locally
from rayters.training.loop import Epoch, fit
from rayters.training.model import build_net, load_model
from rayters.training.observers import Everyone
from rayters.training.run import Run, from_json, resolve, task_of, to_json
from rayters.training.salvage import LIST, salvage
from rayters.training.schedule import Schedule, learning_rate
from rayters.training.team import Team
from rayters.training.validation import validate

SHORT = Run(
    method=MajorityVote(),
    network=UNet(width=4),
    patch_px=(16, 16),
    epochs=3,
    batch_size=4,
    sampling=Sampling(patches_per_epoch=24, patches_per_block=8, mix_blocks=2),
)


SPLITS = ("train", "train", "train", "train", "validation", "test")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Six little sheets of four digits: four to train, one to validate, one to test."""
    folder = tmp_path_factory.mktemp("digits")
    drawn = digit_sheets(sheets=6, rows=2, columns=2)
    rows: list[CaseRow] = []
    for index in range(6):
        layers = {Layer(id=name): drawn.labels[index, a] for a, name in enumerate(drawn.annotators)}
        layers[Layer(id="reference", role="reference")] = drawn.reference[index]
        case = write_case(
            f"{folder}/{index}.ome.zarr",
            drawn.images[index],
            spacing_um=(1.0, 1.0),
            classes=drawn.classes,
            layers=layers,
        )
        rows.append(describe_case(case, split=SPLITS[index], group=str(index)))
    return write_cohort(
        folder, rows, name="digits", classes=drawn.classes, annotators=drawn.annotators, reference="reference"
    )


def test_training_lowers_the_loss(digits: Cohort, tmp_path: Path) -> None:
    first = train_locally(replace(SHORT, epochs=1), digits, tmp_path / "short").measured
    later = train_locally(replace(SHORT, epochs=8), digits, tmp_path / "long").measured
    assert later["validation_loss"] < first["validation_loss"]


AUGMENTED = replace(SHORT, augmentation=Augmentation(flips=True, rotation_deg=20, gain=0.1))


@pytest.mark.parametrize("run", [SHORT, AUGMENTED], ids=["plain", "augmented"])
def test_the_same_seed_gives_the_same_model_to_the_bit(run: Run, digits: Cohort, tmp_path: Path) -> None:
    once, again = (train_locally(run, digits, tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(a, b) for a, b in zip(once.net.parameters(), again.net.parameters(), strict=True))


def test_augmentation_changes_what_is_trained_on_and_not_what_is_validated_on(digits: Cohort, tmp_path: Path) -> None:
    still = replace(SHORT, epochs=1, learning_rate=1e-12)  # a net that does not move shows the data
    plain = train_locally(still, digits, tmp_path / "plain").measured
    moved = train_locally(replace(AUGMENTED, epochs=1, learning_rate=1e-12), digits, tmp_path / "moved").measured
    assert moved["loss"] != pytest.approx(plain["loss"], rel=1e-4)
    assert moved["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-6)


class Pauses(Everyone):
    """Keeps the states that a training can go on from."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict] = []

    def on_pause(self, net: torch.nn.Module, state: dict) -> None:
        self.states.append(copy.deepcopy(state))


def test_a_training_goes_on_in_the_midst_of_an_epoch_as_if_it_had_never_stopped(digits: Cohort) -> None:
    run = replace(AUGMENTED, average=0.9, precision="float16")
    task, stream, pauses = task_of(run, digits), local_stream(run, digits), Pauses()
    whole = fit(run, task, stream, pauses, team=Team(), pause_steps=4)
    assert [state["place"]["step"] for state in pauses.states] == [4, 4, 4]  # of six steps, in each of three epochs
    resumed = fit(run, task, stream, Everyone(), team=Team(), state=pauses.states[1])
    assert resumed.measured == whole.measured
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True))


def test_a_training_pauses_only_where_there_is_a_patch_for_everybody_who_may_go_on(digits: Cohort) -> None:
    task, stream, pauses = task_of(SHORT, digits), local_stream(SHORT, digits), Pauses()
    fit(SHORT, task, stream, pauses, team=Team(most=5), pause_steps=1)
    steps = [state["place"]["step"] for state in pauses.states]
    assert steps == [1] * SHORT.epochs  # after two of six steps four patches are left at least


def test_a_training_does_not_pause_at_the_end_of_an_epoch_that_others_began(digits: Cohort) -> None:
    run, pauses, resumed = replace(SHORT, epochs=1), Pauses(), Pauses()
    task, stream = task_of(run, digits), local_stream(run, digits)
    fit(run, task, stream, pauses, team=Team(), pause_steps=1)
    others = Leg(world=3, batch_size=run.batch_size, batches=1)  # three batches at once, so that three are left
    state = pauses.states[0] | {"place": pauses.states[0]["place"] | {"legs": [asdict(others)]}}
    fit(run, task, stream, resumed, team=Team(), pause_steps=1, state=state)
    assert [state["place"]["step"] for state in resumed.states] == [2, 3]


class Diary(Everyone):
    """Notes what was measured of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[tuple[int, int, float]] = []

    def on_epoch(self, epoch: Epoch) -> None:
        self.epochs.append((epoch.attempt, epoch.epoch, epoch.measured["astray"]))


def test_who_went_astray_at_the_end_begins_again_as_often_as_allowed_and_is_called_astray_all_the_same(
    digits: Cohort,
) -> None:
    # confusions, and a net that never moves: it draws something at random, and no annotator drew that
    run = replace(SHORT, method=AnnotatorConfusion(), epochs=2, learning_rate=1e-12, restarts=1)
    diary = Diary()
    fit(run, task_of(run, digits), local_stream(run, digits), diary, team=Team())
    assert diary.epochs == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]


@pytest.mark.parametrize("method", [MajorityVote(), MeanLabels()], ids=["vote", "mean"])
def test_a_batch_in_parts_updates_the_net_as_the_whole_batch_does(method: Method, digits: Cohort) -> None:
    run = replace(SHORT, epochs=1, method=method)
    nets = [
        fit(each, task_of(each, digits), local_stream(each, digits), Everyone(), team=Team()).net
        for each in (run, replace(run, accumulate=4))
    ]
    for whole, parts in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.allclose(whole, parts, atol=2e-4)


def test_with_patience_a_training_stops_early_and_the_best_net_is_kept(digits: Cohort) -> None:
    run = replace(
        SHORT, epochs=30, patience=2, learning_rate=0.3, schedule="constant"
    )  # too fast to get better for long
    seen = Everyone()
    losses: list[float] = []
    seen.on_epoch = lambda epoch: losses.append(epoch.measured["validation_loss"])  # type: ignore[method-assign]
    last = fit(run, task_of(run, digits), local_stream(run, digits), seen, team=Team())
    assert len(losses) < 30
    assert losses[-3] == min(losses) == last.kept["validation_loss"]
    again = validate(run, task_of(run, digits), last.net, local_stream(run, digits).validation(), team=Team())
    assert again["validation_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_average_of_the_weights_lags_behind_them(digits: Cohort) -> None:
    run = replace(SHORT, epochs=1)
    plain, slow = (
        fit(each, task_of(each, digits), local_stream(each, digits), Everyone(), team=Team()).net
        for each in (run, replace(run, average=0.999))
    )
    torch.manual_seed(0)
    start = build_net(run, task_of(run, digits))

    def way(net: torch.nn.Module) -> float:
        return sum(
            float((a - b).detach().square().sum()) for a, b in zip(net.parameters(), start.parameters(), strict=True)
        )

    assert 0 < way(slow) < way(plain)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("one_cycle", (0.1, 1.0, 0.01)),
        ("cosine", (0.0, 0.839, 0.0)),
        ("poly", (1.0, 0.725, 0.0)),
        ("constant", (1, 1, 1)),
    ],
)
def test_the_learning_rate_is_a_function_of_progress(schedule: Schedule, rates: tuple[float, ...]) -> None:
    assert [learning_rate(schedule, 1.0, at) for at in (0, 0.3, 1)] == pytest.approx(rates, abs=1e-3)


def test_a_model_that_was_saved_predicts_as_before(digits: Cohort, tmp_path: Path) -> None:
    model = train_locally(SHORT, digits, tmp_path)
    again = load_model(tmp_path)
    views = torch.randn(2, 1, 1, 16, 16)
    assert again.run == model.run
    assert torch.equal(model.net.eval()(views)["logits"], again.net(views)["logits"])


def test_one_worker_on_ray_gives_the_loss_of_the_loop_alone(digits: Cohort, tmp_path: Path, ray_session: None) -> None:
    alone = train_locally(SHORT, digits, tmp_path / "alone").measured
    on_ray = train(SHORT, digits, storage_path=str(tmp_path), name="one", crew=Crew(workers=1)).model.measured
    assert on_ray["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert on_ray["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-6)


def test_a_worker_that_has_taken_every_cpu_reads_for_itself_through_a_cache_and_learns_the_same(
    digits: Cohort, tmp_path: Path, ray_session: None
) -> None:
    alone = train_locally(SHORT, digits, tmp_path / "alone").measured
    crew = Crew(workers=1, cpus_per_worker=ray.cluster_resources()["CPU"], cache_folder=str(tmp_path / "cache"))
    on_ray = train(SHORT, digits, storage_path=str(tmp_path), name="own", crew=crew).model.measured
    assert on_ray["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-6)
    assert list((tmp_path / "cache").rglob("c/*")), "the cache holds chunks of the cases"


def test_sharded_workers_learn_what_whole_ones_learn(digits: Cohort, tmp_path: Path, ray_session: None) -> None:
    run = replace(SHORT, gradient_clip=0.0, accumulate=2)
    ddp, fsdp = (
        train(run, digits, storage_path=str(tmp_path), name=kind, crew=Crew(workers=2, sharding=kind)).model
        for kind in ("ddp", "fsdp")
    )
    assert fsdp.measured["validation_loss"] == pytest.approx(ddp.measured["validation_loss"], rel=1e-3)
    assert fsdp.net.state_dict().keys() == ddp.net.state_dict().keys()


def test_a_killed_worker_changes_nothing_in_the_end(digits: Cohort, tmp_path: Path, ray_session: None) -> None:
    run = replace(SHORT, epochs=5)
    crew = Crew(workers=2, pause_steps=2)
    undisturbed = train(run, digits, storage_path=str(tmp_path), name="calm", crew=crew).model.measured
    killer = threading.Thread(target=_kill_one_worker_after_the_first_checkpoint, args=(tmp_path / "killed",))
    killer.start()
    survived = train(run, digits, storage_path=str(tmp_path), name="killed", crew=crew).model.measured
    killer.join()
    assert survived == pytest.approx(undisturbed, rel=1e-6)


def _kill_one_worker_after_the_first_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint_*/run.json")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
    workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
    mine = [p for p in workers if os.getpid() in [parent.pid for parent in p.parents()]]
    assert mine, "there is a worker to kill"
    mine[0].send_signal(signal.SIGKILL)


def test_what_is_reported_before_the_first_validation_can_be_read_again_from_json(digits: Cohort) -> None:
    said = json.dumps(dict(Reporter(SHORT, digits, Team()).measured), allow_nan=False)
    assert json.loads(said)["validation_loss"] > 1e300, "every loss that is measured is lower"


def test_a_finished_run_is_found_and_not_trained_again_even_if_a_full_disk_cut_off_its_list_of_checkpoints(
    digits: Cohort, tmp_path: Path, ray_session: None
) -> None:
    def trained() -> Trained:
        return train(SHORT, digits, storage_path=str(tmp_path), name="again", crew=Crew(workers=1))

    first, second = trained(), trained()
    newest = max((tmp_path / "again").glob("checkpoint_2*"))
    assert second.folder == first.folder == str(newest)
    (tmp_path / "again" / LIST).write_bytes(b"")
    (tmp_path / "again" / f"{newest.name}9").mkdir()  # of the upload that found the disk full
    (tmp_path / "again" / f"{newest.name}9" / "run.json").write_bytes(b"{")
    assert trained().folder == first.folder
    assert salvage(str(tmp_path / "never begun")) is None


def test_a_list_that_cannot_be_read_just_now_is_not_taken_for_lost(tmp_path: Path) -> None:
    (tmp_path / "run" / LIST).mkdir(parents=True)  # no answer, rather than a bad one
    with pytest.raises(StoreError):
        salvage(str(tmp_path / "run"))
    assert (tmp_path / "run" / LIST).exists()


def test_a_run_survives_json() -> None:
    run = Run(method=MeanLabels(), patch_px=(8, 8), seed=7)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_an_unknown_part_of_a_run_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'Oracle' is no part of a run; known are .*MajorityVote"):
        from_json({"is": "Oracle"})


def test_per_annotator_learning_is_refused_where_an_id_is_not_a_person(digits: Cohort) -> None:
    anonymous = replace(digits, stable_annotators=False)
    with pytest.raises(ValueError, match="not the same person in every case"):
        resolve(Run(patch_px=(16, 16)), anonymous)
    assert resolve(Run(patch_px=(16, 16), force=True), anonymous).force
    assert resolve(SHORT, anonymous) == SHORT


def test_a_soft_dice_term_under_several_fields_of_view_is_warned_of(digits):
    several = replace(SHORT, gaze=FoveationGaze(fields_of_view=(1, 2)), method=MajorityVote())
    with pytest.warns(UserWarning, match=r"FoveationGaze .* MajorityVote has a soft Dice term .*--method.dice 0"):
        resolve(several, digits)
    with warnings.catch_warnings(action="error"):
        resolve(replace(several, method=MajorityVote(dice=0)), digits)
        resolve(replace(several, gaze=FixedGaze()), digits)


def test_the_patch_fits_the_smallest_case(digits: Cohort) -> None:
    assert resolve(replace(SHORT, patch_px=()), digits).patch_px == (48, 48)


def test_a_patch_of_other_axes_than_the_cohort_is_refused(digits: Cohort) -> None:
    with pytest.raises(ValueError, match="3 sides, the cohort's cases have 2 axes"):
        resolve(replace(SHORT, patch_px=(8, 8, 8)), digits)


def test_a_batch_that_workers_cannot_share_is_refused(digits: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be shared evenly by 3 workers"):
        train(SHORT, digits, storage_path=str(tmp_path), name="odd", crew=Crew(workers=3))


def test_intensities_are_those_of_the_training_cases(digits: Cohort) -> None:
    task = task_of(SHORT, digits)
    rows = digits.split("train").cases
    assert task.mean == pytest.approx((sum(row.mean[0] for row in rows) / 4,))
