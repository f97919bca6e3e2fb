"""On a cluster every machine writes its blocks, and losing a worker or a machine in the middle changes nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ray.cluster_utils import Cluster

from casebook import open_case, open_cohort, write_case
from casebook.one_pass import Storage

ROOT = Path(__file__).parents[1]
SMALL = Storage(image_chunk_px=(64, 64), label_chunk_px=(64, 64), shards="always")
CLASSES = ("background", "tumour")

# The driver of a cluster is a process of its own: it writes one case whose source notes who reads which block, and takes its time.
DRIVER = f"""
import os, sys, time
from dataclasses import dataclass
sys.path.insert(0, {str(ROOT / "jobs")!r})
import numpy as np, ray
from ray_blocks import connect
from casebook import Layer, write_case
from casebook.one_pass import Storage

@dataclass(frozen=True, kw_only=True)
class Watched:
    log: str
    shape: tuple = (1, 1100, 900)
    dtype: str = "uint8"
    identity: str = "watched"

    def read(self, origin, size):
        node = ray.get_runtime_context().get_node_id()
        open(f"{{self.log}}/{{origin[0]}}-{{origin[1]}} {{node}} {{os.getpid()}}", "w").close()
        time.sleep(0.4)
        y, x = np.ogrid[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]
        return ((y * 7 + x * 3) % 251).astype(np.uint8)[None]

address, log, target = sys.argv[1:]
storage = Storage(image_chunk_px=(64, 64), label_chunk_px=(64, 64), shards="always")
steps, scheduler = [], connect(address)
case = write_case(target, Watched(log=log), spacing_um=(1, 1), classes=("background", "tumour"), layers={{}}, name="a",
                  storage=storage, scheduler=scheduler, progress=lambda done, total: steps.append((done, total)))
assert steps == [(k, steps[-1][1]) for k in range(1, len(steps) + 1)] and steps[-1][0] == steps[-1][1], steps
try:
    wrong = {{Layer(id="anna"): np.full((9, 9), 7, np.uint8)}}
    write_case(target + "2", np.zeros((1, 9, 9), np.uint8), spacing_um=(1, 1), classes=("a", "b"), layers=wrong, scheduler=scheduler)
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one CPU each, as far as Ray can tell."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def python(*arguments):
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "storage"))
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tree_hash(folder):
    files = sorted(f for f in Path(folder).rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_folder_is_ingested_by_all_machines(cluster, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (700, 600, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/a.tif", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "in/a_anna.tif", (pixels[..., 0] > 99).astype(np.uint8))
    (tmp_path / "in/b.tif").write_bytes(b"nonsense")
    job = python(
        ROOT / "jobs/ingest.py", "--source", tmp_path / "in", "--to", tmp_path / "out", "--address", cluster.address
    )
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1, said  # b cannot be read; a is whole
    assert "Traceback" not in said
    (row,) = open_cohort(tmp_path / "out").cases
    assert (open_case(row.url).read_image(0, (0, 0), (700, 600)) == np.moveaxis(pixels, -1, 0)).all()


def test_the_giant_slide_is_the_same_from_a_cluster_as_from_one_machine(cluster, tmp_path):
    jobs = [
        python(ROOT / "jobs/make_slide.py", "--to", tmp_path / name, "--side", 2100, "--boxes", 9, *more,
               "--json", tmp_path / f"{name}.json")
        for name, more in (("here", ()), ("there", ("--address", cluster.address)))
    ]  # fmt: skip
    for job in jobs:
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 0, said
    rows = {row["row"]: row["value"] for row in json.loads((tmp_path / "there.json").read_text())}
    assert rows["boxes that differ"] == 0
    assert tree_hash(tmp_path / "there/cases") == tree_hash(tmp_path / "here/cases")


def test_a_lost_worker_and_a_lost_machine_in_the_middle_change_not_one_bit(cluster, tmp_path):
    y, x = np.ogrid[:1100, :900]
    picture = ((y * 7 + x * 3) % 251).astype(np.uint8)[None]
    write_case(tmp_path / "whole", picture, spacing_um=(1, 1), classes=CLASSES, layers={}, name="a", storage=SMALL)
    log = tmp_path / "log"
    log.mkdir()
    (doomed,) = cluster.worker_nodes
    job = python("-c", DRIVER, cluster.address, log, tmp_path / "broken")
    lost = [kill_worker_of(cluster.head_node, log, job)]
    lost.append(block_of(doomed, log, job)[0])
    cluster.remove_node(doomed, allow_graceful=False)  # SIGKILL to all of it, while it reads that block
    said, _ = job.communicate(timeout=180)
    assert job.returncode == 0, said
    for block in lost:
        assert len(list(log.glob(f"{block} *"))) >= 2, f"block {block} was lost and not read again"
    assert tree_hash(tmp_path / "broken") == tree_hash(tmp_path / "whole")
    assert "CaseFormatError layer 'anna' holds values 7" in said  # a block's own error arrives as it was raised
    assert "Traceback" not in said


def kill_worker_of(node, log, job):
    block, pid = block_of(node, log, job)
    os.kill(pid, signal.SIGKILL)
    return block


def block_of(node, log, job):
    """The newest block that this machine has begun to read, and the process that does."""
    while not (found := sorted(log.glob(f"* {node.node_id} *"), key=lambda p: p.stat().st_mtime)):
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.02)
    block, _, pid = found[-1].name.split()
    return block, int(pid)
