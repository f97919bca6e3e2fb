"""The application on Ray Serve: the same answers, through dead replicas and promotions."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from casebook import Layer, describe_case, open_case, write_case, write_cohort
from rayters.inference.predict import predict_picture
from rayters.serving.client import Client
from rayters.serving.registry import Card, promote, publish
from rayters.serving.tokens import issue
from rayters.training.model import load_model

ROOT = Path(__file__).parents[1]
GREY = (np.arange(24 * 20, dtype=np.uint32) * 7 % 251).astype(np.uint8).reshape(24, 20)
PORT = 18437


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def cards(folder: Path, tiny_model: Path, another_tiny_model: Path) -> list[Card]:
    """Two versions of one model; the first is promoted."""
    cards = [publish(str(folder / "models"), "digits", model) for model in (tiny_model, another_tiny_model)]
    promote(str(folder / "models"), "digits", cards[0].version)
    return cards


@pytest.fixture(scope="module")
def process(folder: Path, cards: list[Card]) -> Iterator[subprocess.Popen]:
    """jobs/serve.py, as a user starts it."""
    layers = {Layer(id="anna"): (GREY > 99).astype(np.uint8), Layer(id="ben"): (GREY > 120).astype(np.uint8)}
    case = write_case(
        folder / "cohort/a.ome.zarr",
        GREY[None],
        spacing_um=(1.0, 1.0),
        classes=("background", "digit"),
        layers=layers,
    )
    row = describe_case(case, split="train", group="g")
    write_cohort(folder / "cohort", [row], name="c", classes=("background", "digit"))
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--cohort", str(folder / "cohort"), "--port", str(PORT)]
    places = ["--models", "models", "--storage", "serving", "--tokens", "tokens.json"]
    sizes = ["--fewest", "2", "--most", "2", "--cpus", "0.5", "--batch-size", "4", "--requests-per-second", "0"]
    log = (folder / "log").open("w")
    process = subprocess.Popen([*command, *places, *sizes], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 240
    while "token " not in (text := (folder / "log").read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.3)
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def server(process: subprocess.Popen) -> str:
    return f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def client(server: str, folder: Path) -> Client:
    return Client(server, issue(str(folder / "tokens.json"), scope="admin", days=1))


@pytest.fixture(scope="module")
def truths(cards: list[Card], tiny_model: Path, another_tiny_model: Path) -> dict[str, np.ndarray]:
    """What each version must answer."""
    models = (tiny_model, another_tiny_model)
    return {c.id: predict_picture(load_model(m), GREY[None]).labels for c, m in zip(cards, models, strict=True)}


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_client_gets_what_the_model_gives(client: Client, cards: list[Card], truths) -> None:
    found = client.predict("digits", png(GREY))
    assert found.model == cards[0].id
    assert np.array_equal(found.pixels, truths[cards[0].id])
    assert [m["id"] for m in client.models()] == [cards[0].id]
    assert client.predict("digits", png(GREY), answer="posterior").pixels.shape == (2, 24, 20)
    assert client.region("digits", "cohort/a", origin_px0=(4, 4), size_px0=(8, 6)).pixels.shape == (8, 6)


def test_a_batch_gives_each_its_own_answer(client: Client, truths, cards: list[Card], tiny_model: Path) -> None:
    model = load_model(tiny_model)
    pictures = [np.roll(GREY, turn, axis=0)[: 17 + turn] for turn in range(6)]
    wanted = [predict_picture(model, p[None]).labels for p in pictures]
    with ThreadPoolExecutor(7) as pool:
        bad = pool.submit(client.session.post, "/v1/predict/digits", content=b"\x89PNG\r\n\x1a\n rubbish")
        found = list(pool.map(lambda p: client.predict("digits", png(p)).pixels, pictures))
    assert all(np.array_equal(f, w) for f, w in zip(found, wanted, strict=True))
    assert bad.result().status_code == 422


def test_the_very_version_can_be_asked_for_while_another_is_promoted(client: Client, cards: list[Card], truths) -> None:
    found = client.predict(cards[1].id, png(GREY))
    assert found.model == cards[1].id
    assert np.array_equal(found.pixels, truths[cards[1].id])


def test_no_request_is_lost_or_wrong_while_replicas_die_and_models_are_promoted(
    client: Client, cards: list[Card], truths, process: subprocess.Popen
) -> None:
    wrong, answered, seen, done, killed = [], [], set(), threading.Event(), []

    def ask(_: int) -> None:
        until = time.monotonic() + 90
        while (len(killed) < 3 or len(seen) < 2) and time.monotonic() < until:
            found = client.predict("digits", png(GREY))
            answered.append(found.model)
            seen.add(found.model)
            if not np.array_equal(found.pixels, truths[found.model]):
                wrong.append(found.model)

    def kill() -> None:
        while not done.wait(1.0):
            victims = replicas_of(process, "Models")
            if len(victims) > 1:  # real processes, one at a time
                victim = random.Random(len(killed)).choice(victims)
                killed.append(victim.pid)
                victim.kill()

    def turn() -> None:
        for number in count(1):
            if done.wait(1.5):
                return
            client.session.post("/v1/models/digits/promote", json={"version": cards[number % 2].version})

    threads = [threading.Thread(target=t) for t in (kill, turn)]
    for thread in threads:
        thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(killed) >= 3
    assert len(answered) > 300
    assert seen == {card.id for card in cards}


def replicas_of(process: subprocess.Popen, deployment: str) -> list[psutil.Process]:
    """The processes that hold replicas of this server; Ray's workers descend from the driver that started it."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [p for p in below if _title(p).startswith(f"ray::ServeReplica:rayters:{deployment}")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_whole_case_is_predicted_by_a_job_that_can_be_watched(
    client: Client, folder: Path, cards: list[Card]
) -> None:
    job = client.predict_case(cards[0].id, "cohort/a")
    assert job["state"] == "waiting"
    deadline = time.monotonic() + 90
    while (job := client.job(job["id"]))["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    assert (job["state"], job["done"], job["total"]) == ("done", 1, 1), job
    case = open_case(folder / "cohort/a.ome.zarr")
    assert {"digits", "digits-anna", "digits-ben"} <= {layer.id for layer in case.layers}
    assert job["id"] in [j["id"] for j in client.session.get("/v1/jobs").json()]


def test_a_cancelled_job_is_gone_at_once_and_stays_cancelled(client: Client, cards: list[Card]) -> None:
    job = client.predict_case(cards[1].id, "cohort/a")
    assert client.cancel(job["id"])["state"] == "cancelled"
    time.sleep(3)
    assert client.job(job["id"])["state"] == "cancelled"


def test_the_curl_lines_of_the_readme_work_as_printed(client: Client, folder: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if block.startswith("curl")]
    names = {
        "127.0.0.1:8000": f"127.0.0.1:{PORT}",
        "demo-cohort/sheet-27": "cohort/a",
        "annotator=good": "annotator=anna",
    }
    for printed, here in names.items():
        assert printed in lines
        lines = lines.replace(printed, here)
    lines = lines.replace("[64, 64]", "[16, 16]")  # this cohort's sheet is smaller
    (folder / "picture.png").write_bytes(png(GREY))
    token = client.session.headers["Authorization"].removeprefix("Bearer ")
    script = "set -e\n" + lines.replace("curl ", "curl --fail-with-body -sS ")
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, "TOKEN": token}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shapes = [np.asarray(Image.open(folder / f"{name}.png")).shape for name in ("labels", "anna", "region")]
    assert shapes == [(24, 20), (24, 20), (16, 16)]
    assert '"state":"waiting"' in done.stdout


def test_metrics_count_what_was_asked(client: Client) -> None:
    deadline = time.monotonic() + 60
    while "ray_rayters_requests" not in (text := client.session.get("/metrics").text):
        assert time.monotonic() < deadline, text[:2000]
        time.sleep(1)
    assert 'route="/v1/predict/{model}"' in text


def test_a_damaged_upload_of_the_largest_size_does_not_take_a_replica_with_it(client: Client) -> None:
    big = b"\x89PNG\r\n\x1a\n" + os.urandom(8 * 2**20)
    assert client.session.post("/v1/predict/digits", content=big).status_code == 422
    assert client.session.get("/health").status_code == 200


def test_without_a_token_the_served_port_answers_nothing(server: str) -> None:
    assert httpx.post(f"{server}/v1/predict/digits", content=png(GREY)).status_code == 401
