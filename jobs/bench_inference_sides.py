"""The two sides of bench_inference.py, each a function of one cohort of one case: ours, MONAI's, and ours on simulated nodes."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casebook import Cohort, open_case, open_cohort
from rayters.inference.predict_cohort import Pool, predict_cohort
from rayters.inference.tiling import Tiling
from rayters.inference.weights import pack
from rayters.inference.work import plan_work, predict_here
from rayters.inference.writing import Output
from rayters.methods import MajorityVote
from rayters.networks.backbone import UNet
from rayters.training.model import Model, build_net, load_model, save_model
from rayters.training.run import Run, task_of

OVERLAP, BATCH = 0.25, 4
CORES = os.cpu_count() or 1


def run(job: dict[str, Any]) -> dict[str, float]:
    """One side: seconds (of nodes: batches per second), pixels, and the peak of resident memory."""
    torch.set_num_threads(CORES if job["who"] == "monai" else 1)
    cohort = open_cohort(job["cohort"])
    cohort = replace(cohort, cases=cohort.cases[:1])
    sides = {"ours": ours, "monai": monai, "nodes": on_nodes}
    figure = sides[job["who"]](job, cohort)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    return {"figure": figure, "pixels": float(np.prod(cohort.cases[0].shape)), "peak_mib": peak}


def untrained(folder: Path, cohort_url: str, patch_px: tuple[int, ...], width: int) -> str:
    """A net of some width that nobody trained, saved once."""
    if not (folder / "run.json").is_file():
        cohort = open_cohort(cohort_url)
        run = Run(method=MajorityVote(), network=UNet(width=width), patch_px=patch_px)
        task = task_of(run, cohort)
        torch.manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)
        net = build_net(run, task)
        save_model(
            folder,
            Model(run=run, task=task, classes=cohort.classes, annotators=cohort.annotators, measured={}, net=net),
        )
    return str(folder)


def ours(job: dict[str, Any], cohort: Cohort) -> float:
    """The work of jobs/predict.py in this process."""
    packed = pack((job["model"],))
    load_model(job["model"])  # imports what nets are made of, as the other side does before its clock starts
    began = time.perf_counter()
    tiling = Tiling(overlap=OVERLAP, batch_size=BATCH)
    output = Output(to=job["out"], block_mib=job.get("block_mib", 128))
    work = plan_work(packed, cohort, tiling=tiling, output=output, skip_glass=False)
    for done in predict_here(packed, cohort, work, workers=job.get("workers", CORES)):
        assert done.state == "predicted", done.error
    return time.perf_counter() - began


def monai(job: dict[str, Any], cohort: Cohort) -> float:
    """Read, predict and write as MONAI's tutorials do, with Zarr on both ends, and with the system's allocator as it comes."""
    import zarr
    from monai.inferers import sliding_window_inference

    import rayters.training.model as ours_too

    ours_too.keep_freed_memory = lambda: None
    model = load_model(job["model"])
    mean, std = (torch.tensor(v).view(1, -1, *(1,) * model.task.axes) for v in (model.task.mean, model.task.std))

    def posterior(tiles: torch.Tensor) -> torch.Tensor:
        return model.run.method.predict(model.net(tiles[:, None])).posterior

    began = time.perf_counter()
    stored = zarr.open_array(f"{open_case(cohort.cases[0].url).url}/0", mode="r")[:]
    with torch.inference_mode():
        image = (torch.from_numpy(np.asarray(stored))[None].float() - mean) / std
        seen = sliding_window_inference(image, model.task.patch_px, BATCH, posterior, overlap=OVERLAP, mode="gaussian")
    maps = seen[0].numpy()
    group = zarr.create_group(job["out"])
    chunks = (512, 512) if maps.ndim == 3 else (64, 128, 128)
    sizes = tuple(min(c, n) for c, n in zip(chunks, maps.shape[1:], strict=True))
    group.create_array("posterior", data=np.rint(maps * 255).astype(np.uint8), chunks=(len(maps), *sizes))
    group.create_array("labels", data=maps.argmax(0).astype(np.uint8), chunks=sizes)
    return time.perf_counter() - began


def on_nodes(job: dict[str, Any], cohort: Cohort) -> float:
    """Batches of tiles per second on a cluster of so many nodes of one CPU, while all of them are at work."""
    import ray
    from ray.cluster_utils import Cluster

    stamps = Path(f"{job['out']}-stamps")
    shutil.rmtree(stamps, ignore_errors=True)
    stamps.mkdir(parents=True)
    root = Path(__file__).parents[1]
    path = os.pathsep.join(str(root / part) for part in ("platform", "storage", "jobs"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(job["nodes"]):
        cluster.add_node(num_cpus=1, resources={"looks": 1})
    environment = {
        "env_vars": {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "BENCH_SECONDS": str(job["sleep"]),
            "BENCH_STAMPS": str(stamps),
        },
        "worker_process_setup_hook": slow_net,
    }
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    try:
        packed = pack((job["model"],))
        output = Output(to=job["out"], block_mib=1)
        tiling = Tiling(overlap=OVERLAP, batch_size=BATCH)
        work = plan_work(packed, cohort, tiling=tiling, output=output, skip_glass=False)
        for done in predict_cohort(packed, cohort, work, Pool(workers=job["nodes"], cpus_per_worker=0.7)):
            assert done.state == "predicted", done.error
    finally:
        ray.shutdown()
        cluster.shutdown()
    return together([[float(line) for line in file.read_text().split()] for file in stamps.iterdir()], job["nodes"])


def together(stamps: list[list[float]], nodes: int) -> float:
    """Events per second between the last worker's first and the first worker's last: starting processes is not what is measured.

    >>> together([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]], 2)
    2.0
    """
    assert len(stamps) == nodes, f"{len(stamps)} of {nodes} workers got something to do: the case is too small"
    first, last = max(min(each) for each in stamps), min(max(each) for each in stamps)
    return sum(first <= stamp < last for each in stamps for stamp in each) / (last - first)


def slow_net() -> None:
    """In every worker process: a batch of tiles takes at least so long, as if a slower device computed it."""
    import rayters.inference.predict as predict

    forward, seconds = predict.forward, float(os.environ["BENCH_SECONDS"])

    def slow(*arguments: Any) -> Any:
        with (Path(os.environ["BENCH_STAMPS"]) / str(os.getpid())).open("a") as file:
            file.write(f"{time.time()}\n")
        time.sleep(seconds)
        return forward(*arguments)

    predict.forward = slow
