"""Which replica gets a request: the one with the fewest in hand.

Serve's own router chooses by a queue length that a replica reports with each answer, as it was when that request came in. Where
an answer takes 0.1 s and eight wait in line, the report is most of a second old: the router then swings, sixteen requests to one
replica and none to the other, and back (docs/results/serving.md). A front knows better what it has sent and what came back.
"""

import random
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

LOADING = 4  # a model that must be loaded first costs a request about as much as so many others before it


class FewestInHand(RequestRouter):
    """Ranks replicas by what this router has in flight there; those that hold the model already have an advantage."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve calls it once, in the front's process."""
        self.in_hand: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All candidates, one a rank, the best first; a full one is passed over by the caller."""
        model = pending_request.metadata.multiplexed_model_id if pending_request else ""
        shuffled = random.sample(candidate_replicas, len(candidate_replicas))
        return [[replica] for replica in sorted(shuffled, key=lambda replica: self._cost(replica, model))]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self.in_hand[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Fires once for each that was sent, however it ended."""
        self.in_hand[replica_id] -= 1

    def _cost(self, replica: RunningReplica, model: str) -> int:
        holds = not model or model in replica.multiplexed_model_ids
        return self.in_hand[replica.replica_id] + (0 if holds else LOADING)
