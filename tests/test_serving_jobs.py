"""Whole-case jobs: the worker without Ray, and the books that every front replica reads."""

import time
from pathlib import Path

import numpy as np
import pytest

from casebook import Layer, describe_case, open_case, write_case, write_cohort
from rayters.inference.predict import predict_picture
from rayters.serving.places import Places
from rayters.serving.refusal import RefusedError
from rayters.serving.registry import promote, publish
from rayters.serving.settings import Settings
from rayters.serving.whole_case import Books, public
from rayters.serving.whole_case_worker import Worker
from rayters.training.model import load_model

GREY = (np.arange(24 * 20, dtype=np.uint32) * 7 % 251).astype(np.uint8).reshape(24, 20)


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    card = publish(str(tmp_path / "models"), "digits", tiny_model)
    promote(str(tmp_path / "models"), "digits", card.version)
    layers = {Layer(id="anna"): (GREY > 99).astype(np.uint8), Layer(id="ben"): (GREY > 120).astype(np.uint8)}
    classes = ("background", "digit")
    case = write_case(tmp_path / "cohort/a.ome.zarr", GREY[None], spacing_um=(1.0, 1.0), classes=classes, layers=layers)
    write_cohort(tmp_path / "cohort", [describe_case(case, split="train", group="g")], name="c", classes=classes)
    return Settings(
        models=str(tmp_path / "models"), cohorts=(str(tmp_path / "cohort"),), storage=str(tmp_path / "serving")
    )


def opened(settings: Settings, model: str) -> dict:
    cohort, row = Places(settings.cohorts).find("cohort/a")
    return Books(settings.storage).open(model=model, cohort=cohort, name=row.case, holder="lab")


def version(settings: Settings) -> str:
    from rayters.serving.registry import current

    return current(settings.models, "digits").id


def test_a_job_leaves_the_model_s_layer_beside_the_annotators_own(settings: Settings, tiny_model: Path) -> None:
    job = opened(settings, version(settings))
    assert Worker(settings).run(job) == "done"
    case = open_case(f"{settings.cohorts[0]}/a.ome.zarr")
    assert case.annotators == ("anna", "ben")
    drawn = case.read_labels(("digits", "digits-anna"), 0, (0, 0), (24, 20))
    wanted = predict_picture(load_model(tiny_model), GREY[None])
    assert np.array_equal(drawn[0], wanted.labels)
    assert np.array_equal(drawn[1], wanted.annotator_labels[0])
    noted = Books(settings.storage).read(job["id"], holder="lab")
    assert (noted["state"], noted["done"], noted["total"]) == ("done", 1, 1)
    assert noted["ended_on"]


def test_the_same_job_again_finds_its_blocks_done(settings: Settings) -> None:
    for _ in range(2):
        assert Worker(settings).run(opened(settings, version(settings))) == "done"


def test_a_job_whose_model_is_damaged_fails_in_words(settings: Settings) -> None:
    id = version(settings)
    weights = Path(settings.models) / id.replace("@", "/") / "weights.safetensors"
    weights.write_bytes(b"not these")
    job = opened(settings, id)
    assert Worker(settings).run(job) == "failed"
    assert "it is not loaded" in Books(settings.storage).read(job["id"], holder=None)["detail"]


def test_a_cancelled_job_stays_cancelled_whatever_its_worker_still_says(settings: Settings) -> None:
    books = Books(settings.storage)
    job = opened(settings, version(settings))
    books.note(job["id"], state="running", total=9)
    books.note(job["id"], state="cancelled")
    assert books.note(job["id"], state="done", done=9)["state"] == "cancelled"


def test_a_job_is_its_holders_own(settings: Settings) -> None:
    books = Books(settings.storage)
    job = opened(settings, version(settings))
    assert books.read(job["id"], holder="lab")["state"] == "waiting"
    for strange in (job["id"], "0" * 16, "../../etc/passwd", ""):
        with pytest.raises(RefusedError) as refused:
            books.read(strange, holder="somebody else")
        assert refused.value.status == 404
    assert books.of("somebody else") == []
    assert [j["id"] for j in books.of(None)] == [job["id"]]


def test_a_holder_is_not_shown_where_things_lie(settings: Settings) -> None:
    job = public(opened(settings, version(settings)))
    assert job["case"] == "cohort/a"
    assert settings.cohorts[0] not in str(job)


def test_the_newest_job_comes_first(settings: Settings) -> None:
    first = opened(settings, version(settings))
    time.sleep(1.1)
    second = opened(settings, version(settings))
    assert [j["id"] for j in Books(settings.storage).of("lab")] == [second["id"], first["id"]]
