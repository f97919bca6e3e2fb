"""How much of the bare model's speed is left when it is served, and whether any answer is lost when replicas die.

    python jobs/bench_serving.py --quick                          under a minute of measuring; the chaos run has 200 requests
    python jobs/bench_serving.py --json docs/results/serving.json 10,000 requests under chaos

The model is a U-Net of width 16 (untrained: its speed does not know) on 256 px patches, the requests are grey pictures of --side pixels as
PNG. Everything runs on this machine: server, clients, the plain FastAPI server that it is compared with.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from casebook import Layer, describe_case, write_case, write_cohort
from rayters.inference.predict import predict_picture
from rayters.inference.tiling import Tiling
from rayters.methods import AnnotatorConfusion
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.reports.rows import Row, rows_table, write_rows
from rayters.serving.client import Client
from rayters.serving.registry import Card, promote, publish
from rayters.serving.tokens import issue
from rayters.training.model import Model, build_net, load_model, save_model
from rayters.training.run import Run

ROOT = Path(__file__).parents[1]
PATCH = (256, 256)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Measure the server."""

    quick: bool = False  # fewer requests, the same rows
    side: int = 256  # pixels of a request's picture
    replicas: int = 2  # that hold the model, one CPU thread each; as many uvicorn workers
    port: int = 18600
    store: str | None = None  # s3:// folder for a cohort, from which regions are served too, through the cache
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Measures, prints a table."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with it
    with tempfile.TemporaryDirectory(prefix="rayters-bench-") as place:
        folder = Path(place)
        cards = [_publish(folder, seed) for seed in (0, 1)]
        promote(str(folder / "models"), "bench", cards[0].version)
        rows = _rows(folder, job, cards, _picture(job.side))
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)


def _rows(folder: Path, job: Job, cards: list[Card], picture: NDArray[np.uint8]) -> list[Row]:
    """All sides stand ready and are measured in turn, round by round: a shared machine is not equally fast all day."""
    data = _png(picture)
    plain_url = f"http://127.0.0.1:{job.port + 1}"
    with (
        _bare(folder, job, picture) as bare,
        _plain(folder, job, plain_url),
        httpx.Client(base_url=plain_url, timeout=60) as session,
        _served(folder, job, _cohorts(folder, job, picture)) as (process, client),
    ):
        asks: dict[str, Callable[[], object]] = {
            "alone": lambda: bare(1, 1),
            "plain": lambda: session.post("/predict", content=data).raise_for_status(),
            "served": lambda: client.session.post("/v1/predict/bench", content=data).raise_for_status(),
            "regions": lambda: _region(client, "cohort/a", job),
        }
        if job.store:
            asks["store"] = lambda: _region(client, "stored/a", job)
        first = _milliseconds(asks["store"]) if job.store else None
        rates: dict[str, list[float]] = {side: [] for side in ("bare", "plain", "served", "regions")}
        for _ in tqdm(range(2 if job.quick else 5), desc="rounds", disable=None):
            rates["bare"].append(bare(job.replicas, 40 if job.quick else 120))
            for side in ("plain", "served", "regions"):
                rates[side].append(_throughput(asks[side], job, 0.25 if side == "regions" else 1.0))
        medians = {side: float(np.median(each)) for side, each in rates.items()}
        return _table(medians, _latencies(asks, job), first) + _chaos(folder, job, client, process, cards, picture)


def _table(rate: dict[str, float], ms: dict[str, float], first: float | None) -> list[Row]:
    rows = [
        Row(
            row="plain FastAPI + uvicorn / bare model, throughput at 16 clients",
            value=rate["plain"],
            reference=rate["bare"],
            unit="pictures/s",
        ),
        Row(row="plain FastAPI + uvicorn, p50 overhead at 1 client", value=ms["plain"] - ms["alone"], unit="ms"),
        Row(
            row="served / bare model, throughput at 16 clients",
            value=rate["served"],
            reference=rate["bare"],
            unit="pictures/s",
            goal=">= 0.8",
        ),
        Row(
            row="served, p50 overhead at 1 client over the model's own time",
            value=ms["served"] - ms["alone"],
            unit="ms",
            goal="<= 8",
        ),
        Row(row="the model's own time, p50", value=ms["alone"], unit="ms"),
        Row(
            row="served / plain FastAPI + uvicorn, throughput at 16 clients",
            value=rate["served"],
            reference=rate["plain"],
            unit="pictures/s",
        ),
        Row(
            row="regions of a case (its tiles overlap: four times the work) / pictures, throughput at 16 clients",
            value=rate["regions"],
            reference=rate["served"],
            unit="regions/s",
        ),
        Row(row="regions of a case, p50 at 1 client", value=ms["regions"], unit="ms"),
    ]
    if first is not None:
        name = "regions of a case on an object store"
        rows += [
            Row(
                row=f"{name}, warm cache / on disk, p50 at 1 client",
                value=ms["store"],
                reference=ms["regions"],
                unit="ms",
            ),
            Row(row=f"{name}, the first / on disk", value=first, reference=ms["regions"], unit="ms"),
        ]
    return rows


def _publish(folder: Path, seed: int) -> Card:
    checkpoint = folder / f"checkpoint{seed}"
    checkpoint.mkdir()
    torch.manual_seed(seed)
    run = Run(method=AnnotatorConfusion(), network=UNet(width=16), patch_px=PATCH)
    task = Task(channels=1, classes=2, annotators=2, patch_px=PATCH, mean=(100.0,), std=(50.0,))
    net = build_net(run, task).eval()
    save_model(
        checkpoint,
        Model(run=run, task=task, net=net, classes=("background", "cell"), annotators=("a", "b"), measured={}),
    )
    return publish(str(folder / "models"), "bench", checkpoint)


def _picture(side: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side]
    return np.asarray((100 + 60 * np.sin(x / 9) * np.cos(y / 7) + (x * y) % 13).clip(0, 255), np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


@contextmanager
def _bare(folder: Path, job: Job, picture: NDArray[np.uint8]) -> Iterator[Callable[[int, int], float]]:
    """The model alone: pictures a second that so many processes make of so many pictures each, whenever it is asked."""
    program = (
        "import sys, time, numpy as np, torch; torch.set_num_threads(1)\n"
        "from rayters.training.model import load_model; from rayters.inference.predict import predict_picture\n"
        "from rayters.inference.tiling import Tiling\n"
        "m, p, t = load_model(sys.argv[1]), np.load(sys.argv[2])[None], Tiling(annotators=False)\n"
        "[predict_picture(m, p, tiling=t) for _ in range(5)]; print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    s = time.perf_counter(); [predict_picture(m, p, tiling=t) for _ in range(int(line))]\n"
        "    print(int(line) / (time.perf_counter() - s), flush=True)\n"
    )
    np.save(folder / "picture.npy", picture)
    command = [sys.executable, "-c", program, str(folder / "checkpoint0"), str(folder / "picture.npy")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": _environment()}
    processes = [subprocess.Popen(command, **pipes) for _ in range(job.replicas)]  # type: ignore[call-overload]

    def rate(sides: int, pictures: int) -> float:
        for process in processes[:sides]:
            process.stdin.write(f"{pictures}\n")
            process.stdin.flush()
        return sum(float(process.stdout.readline()) for process in processes[:sides])

    try:
        for process in processes:
            process.stdout.readline()
        yield rate
    finally:
        for process in processes:
            process.kill()


def _environment() -> dict[str, str]:
    paths = f"{ROOT / 'platform'}{os.pathsep}{ROOT / 'storage'}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@contextmanager
def _running(command: list[str], folder: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A server, until the block ends."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=_environment())
        deadline = time.monotonic() + 240
        try:
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _plain(folder: Path, job: Job, url: str) -> Iterator[None]:
    """The same model behind a plain FastAPI route: no guard, no batches, no second chance."""
    program = str(ROOT / "jobs/bench_serving_plain.py")
    command = [sys.executable, program, str(folder / "checkpoint0"), str(job.port + 1), str(job.replicas)]
    with _running(command, folder, lambda: _answers(url)):
        yield


@contextmanager
def _served(folder: Path, job: Job, cohorts: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    url = f"http://127.0.0.1:{job.port}"
    token = issue(str(folder / "tokens.json"), scope="admin", days=1)
    sizes = ["--fewest", str(job.replicas), "--most", str(job.replicas), "--cpus", "0.5", "--requests-per-second", "0"]
    places = ["--models", "models", "--storage", "serving", "--tokens", "tokens.json", "--cohort", *cohorts]
    places += ["--cache-folder", str(folder / "cache")]
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--port", str(job.port), *places, *sizes]
    with _running(command, folder, lambda: _answers(url)) as process:
        yield process, Client(url, token)


def _latencies(asks: dict[str, Callable[[], object]], job: Job) -> dict[str, float]:
    """Median milliseconds of one client, the sides in turn; the first two after another side find its data in the caches."""
    times: dict[str, list[float]] = {side: [] for side in asks}
    for _ in range(3 if job.quick else 10):
        for side, ask in asks.items():
            for number in range(12):
                taken = _milliseconds(ask)
                if number >= 2:
                    times[side].append(taken)
    return {side: float(np.median(each)) for side, each in times.items()}


def _milliseconds(ask: Callable[[], object]) -> float:
    begun = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - begun)


def _region(client: Client, case: str, job: Job) -> object:
    return client.region("bench", case, origin_px0=(256, 256), size_px0=(job.side, job.side))


def _throughput(ask: Callable[[], object], job: Job, share: float) -> float:
    """Answers a second of 16 clients."""
    total = round((96 if job.quick else 480) * share)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: ask(), range(32)))  # every connection is open and every model loaded
        begun = time.perf_counter()
        list(pool.map(lambda _: ask(), range(total)))
        return total / (time.perf_counter() - begun)


def _cohorts(folder: Path, job: Job, picture: NDArray[np.uint8]) -> list[str]:
    """One on the disk, and the same one in the object store where there is one."""
    urls = [str(folder / "cohort"), *([f"{job.store.rstrip('/')}/stored"] if job.store else [])]
    return [_cohort(url, picture) for url in urls]


def _cohort(url: str, picture: NDArray[np.uint8]) -> str:
    big = np.tile(picture, (2048 // len(picture) + 1,) * 2)[:2048, :2048]
    layers = {Layer(id="a"): (big > 110).astype(np.uint8)}
    case = write_case(
        f"{url}/a.ome.zarr", big[None], spacing_um=(0.5, 0.5), classes=("background", "cell"), layers=layers
    )
    write_cohort(url, [describe_case(case, split="test", group="a")], name="bench", classes=case.classes)
    return url


def _chaos(
    folder: Path,
    job: Job,
    client: Client,
    process: subprocess.Popen[bytes],
    cards: list[Card],
    picture: NDArray[np.uint8],
) -> list[Row]:
    """Replicas are killed, one every few seconds, and the two versions promoted in turn, while eight clients ask."""
    truths = {c.id: _truth(folder / f"checkpoint{n}", picture) for n, c in enumerate(cards)}
    data, total, done = _png(picture), 200 if job.quick else 10_000, threading.Event()
    wrong, killed, promoted = [], [], []

    def ask(_: int) -> bool:
        try:
            found = client.predict("bench", data)
        except Exception:
            return False
        if not np.array_equal(found.pixels, truths[found.model]):
            wrong.append(found.model)
        return True

    def kill() -> None:
        random = np.random.default_rng(0)
        while not done.wait(3):
            victims = [p for p in psutil.Process(process.pid).children(recursive=True) if _is_replica(p)]
            if len(victims) > 1:
                victim = victims[int(random.integers(len(victims)))]
                killed.append(victim.pid)
                victim.kill()

    def turn() -> None:
        for number in count(1):
            if done.wait(2):
                return
            response = client.session.post("/v1/models/bench/promote", json={"version": cards[number % 2].version})
            promoted.append(response.status_code)

    threads = [threading.Thread(target=each) for each in (kill, turn)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(8) as pool:
        answered = sum(tqdm(pool.map(ask, range(total)), total=total, desc="chaos", disable=None))
    done.set()
    for thread in threads:
        thread.join()
    about = f"{total:,} requests, {len(killed)} replicas killed, {len(promoted)} promotions"
    return [
        Row(row=f"wrong answers in {about}", value=len(wrong), unit="answers", goal="0"),
        Row(row=f"lost answers in {about}", value=total - answered, unit="answers", goal="0"),
    ]


def _truth(checkpoint: Path, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return predict_picture(load_model(checkpoint), picture[None], tiling=Tiling(annotators=False)).labels


def _is_replica(process: psutil.Process) -> bool:
    try:
        return " ".join(process.cmdline()).startswith("ray::ServeReplica:rayters:Models")
    except psutil.Error:
        return False


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__))
    except (ValueError, RuntimeError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")
