"""On a cluster that loses a machine in the midst of an epoch, the workers that are left go on, and every patch is seen exactly once."""

import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from casebook import Layer, describe_case, write_case, write_cohort

ROOT = Path(__file__).parents[1]

# The driver of a cluster is a process of its own. A machine has room for one worker and one read. A step is a note of the patches
# that it saw, made lasting by a checkpoint.
DRIVER = """
import json, sys, time
from pathlib import Path
import numpy as np
import ray
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from casebook import open_cohort
from rayters.patches.resume import Leg, Position
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View
from rayters.training.stream import StreamConfig, open_stream, stream_batches

address, folder = sys.argv[1], Path(sys.argv[2])

def loop(config):
    context, checkpoint = train.get_context(), train.get_checkpoint()
    rank, world, shard = context.get_world_rank(), context.get_world_size(), train.get_dataset_shard("train")
    first, legs = 0, []
    if checkpoint:
        with checkpoint.as_directory() as at:
            first, legs = json.loads((Path(at) / "place.json").read_text())
    for epoch in range(first, 2):
        size = 16 // world
        start = Position.after(epoch, [Leg(**leg) for leg in legs], world=world, batch_size=size)
        for done, data in enumerate(
            stream_batches(shard, batch_size=size, epoch=epoch, first_batch=start.first_batch, done=start.done), 1
        ):
            time.sleep(0.1)
            now = [vars(leg) for leg in start.legs(done, world=world, batch_size=size)]
            np.save(folder / f"epoch{epoch} leg{len(now) - 1} rank{rank} batch{start.first_batch + done - 1}.npy", data["patch"])
            place = folder / f"place {rank}"
            place.mkdir(exist_ok=True)
            (place / "place.json").write_text(json.dumps([epoch, now]))
            train.report({}, checkpoint=train.Checkpoint.from_directory(str(place)) if rank == 0 else None)
        if rank == 0:
            (folder / f"epoch{epoch}.json").write_text(json.dumps(now))
        legs = []

ray.init(address=address)
target = View(size_px=(32, 32), field_of_view_px0=(32, 32))
stream = open_stream(
    open_cohort(str(folder / "cohort")), Request(views=(target,), target=target, annotators=("a",)),
    Sampling(patches_per_epoch=150, patches_per_block=8, mix_blocks=4, block_px=64), seed=3,
)
TorchTrainer(
    loop, datasets={"train": stream}, dataset_config=StreamConfig(),
    scaling_config=ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1.5}, placement_strategy="SPREAD"),
    run_config=RunConfig(name="run", storage_path=str(folder / "runs"), failure_config=FailureConfig(max_failures=3)),
).fit()
"""


# All CPUs of the consumer's own machine are taken.
FULL = """
import sys
from pathlib import Path
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from casebook import open_cohort
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View
from rayters.training.stream import StreamConfig, open_stream, stream_batches

ray.init(address=sys.argv[1])
full = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("full"))
there = NodeAffinitySchedulingStrategy(full, soft=False)
ray.get(ray.remote(num_cpus=1, scheduling_strategy=there)(type("Hog", (), {"up": lambda self: 1})).remote().up.remote())
target = View(size_px=(32, 32), field_of_view_px0=(32, 32))
request = Request(views=(target,), target=target, annotators=("a",))
stream = open_stream(open_cohort(sys.argv[2]), request, Sampling(patches_per_epoch=20), seed=3, cpus_per_read=1)
shard = StreamConfig().configure({"train": stream}, 1, None, [full])[0]["train"]

@ray.remote(num_cpus=0, scheduling_strategy=there)
def consumed(shard):
    return sum(len(batch["patch"]) for batch in stream_batches(shard, batch_size=4, epoch=0))

print("consumed", ray.get(consumed.remote(shard)))
"""


def a_cohort(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 300, 260), dtype=np.uint8)
    labels = {Layer(id="a"): (image[0] > 127).astype(np.uint8)}
    case = write_case(folder / "a.ome.zarr", image, spacing_um=(1.0, 1.0), classes=("n", "t"), layers=labels)
    write_cohort(
        folder, [describe_case(case, split="train", group="0")], name="toy", classes=("n", "t"), annotators=("a",)
    )


def test_a_lost_machine_neither_repeats_nor_loses_a_patch(tmp_path: Path) -> None:
    a_cohort(tmp_path / "cohort")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(tmp_path / "epoch0 leg0 rank1 batch3.npy", driver)
        cluster.remove_node(doomed, allow_graceful=False)  # SIGKILL to all of it
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, said[-3000:]
    finally:
        cluster.shutdown()
    worlds = [[leg["world"] for leg in json.loads((tmp_path / f"epoch{e}.json").read_text())] for e in range(2)]
    assert worlds[0] == [2, 1], "two workers began the epoch, one finished it"
    for epoch in range(2):
        assert sorted(seen(tmp_path, epoch)) == [(epoch << 40) + patch for patch in range(150)]


def test_reads_go_to_another_machine_where_workers_have_taken_this_one(tmp_path: Path) -> None:
    a_cohort(tmp_path / "cohort")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, resources={"full": 1})
        cluster.wait_for_nodes()
        done = subprocess.run(
            [sys.executable, "-c", FULL, cluster.address, str(tmp_path / "cohort")],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert "consumed 20" in done.stdout, done.stderr[-3000:]


def wait_for(path: Path, driver: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert driver.poll() is None, driver.communicate()[0][-3000:]
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.05)


def seen(folder: Path, epoch: int) -> list[int]:
    """Identities in the batches that the last checkpoint of the epoch says were done, leg by leg."""
    patches: list[int] = []
    for number, leg in zip(count(), json.loads((folder / f"epoch{epoch}.json").read_text()), strict=False):
        for rank in range(leg["world"]):
            for batch in range(leg["batches"]):
                patches += np.load(folder / f"epoch{epoch} leg{number} rank{rank} batch{batch}.npy").tolist()
    return patches
