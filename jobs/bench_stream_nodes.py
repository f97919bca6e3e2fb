"""The rows of bench_stream.py on simulated nodes: does a stream keep up when there are more machines?"""

import os
import time
from typing import Any

import bench_stream_sides as sides
from casebook import Cohort
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row


def node_rows(cohort: Cohort, seconds: float, reads: int) -> list[Row]:
    """Nodes of one reading CPU each; every read sleeps, so that nodes and not this machine's cores decide."""
    rate = _cluster_rates(cohort, (1, 2, 4), seconds, reads)
    return [
        Row(
            row=f"{nodes} simulated nodes (cluster_utils, throttled decode so that cores do not decide)",
            value=rate[nodes], reference=rate[1], unit="patches/s and node", goal=">= 0.9 efficiency",
        )
        for nodes in rate
    ]  # fmt: skip


def _cluster_rates(cohort: Cohort, numbers: tuple[int, ...], seconds: float, reads: int) -> dict[int, float]:
    """Patches per second and node, of an epoch with so many reads on each node; the processes run already."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 2**28, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(max(numbers)):
        cluster.add_node(num_cpus=1, object_store_memory=2**28, resources={"reads": 1})
    environment = {
        "env_vars": sides.sources() | {"BENCH_READ_SECONDS": str(seconds)},
        "worker_process_setup_hook": throttle,
    }
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    try:
        ids = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("reads")]
        return {nodes: reads * PER_READ / _epoch_seconds(cohort, ids[:nodes], reads) for nodes in numbers}
    finally:
        ray.shutdown()
        cluster.shutdown()


PER_READ = 8  # patches


def _epoch_seconds(cohort: Cohort, ids: list[str], reads: int) -> float:
    """One epoch with a consumer on each of the nodes, and so many reads for each, in streams that have run before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from rayters.training.stream import StreamConfig, open_stream

    sampling = Sampling(
        patches_per_epoch=reads * PER_READ * len(ids), patches_per_block=PER_READ, mix_blocks=2, block_px=512
    )
    ds = open_stream(cohort, sides.request(64), sampling, seed=0, cpus_per_read=1)
    shards = StreamConfig().configure({"train": ds}, len(ids), None, ids)
    workers = [
        ray.remote(_Consumer).options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(shard["train"])
        for node, shard in zip(ids, shards, strict=True)
    ]  # fmt: skip

    def seconds(epoch: int, first_batch: int) -> float:
        start = time.perf_counter()
        ray.get([worker.consume.remote(epoch, first_batch) for worker in workers])
        return time.perf_counter() - start

    seconds(0, first_batch=reads - 2)  # the processes start
    return seconds(1, first_batch=0)


class _Consumer:
    """A training worker that only counts; an actor, as Ray Train's are."""

    def __init__(self, shard: Any) -> None:
        self.shard = shard

    def consume(self, epoch: int, first_batch: int) -> int:
        from rayters.training.stream import stream_batches

        batches = stream_batches(self.shard, batch_size=PER_READ, epoch=epoch, first_batch=first_batch)
        return sum(len(batch["patch"]) for batch in batches)


def throttle() -> None:
    """In every worker process: a read takes at least so long, as if the decoder were slower."""
    import rayters.patches.read as read

    fetch, seconds = read.fetch_views, float(os.environ["BENCH_READ_SECONDS"])

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return fetch(*arguments)

    read.fetch_views = slow
