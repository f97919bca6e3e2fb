"""A request goes to the replica with the fewest in hand; one that holds the model has an advantage."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve.request_router")

from rayters.serving.routing import LOADING, FewestInHand


@pytest.fixture
def router() -> FewestInHand:
    made = FewestInHand.__new__(FewestInHand)  # Serve's constructor wants a cluster
    made._use_replica_queue_len_cache = False
    made.initialize_state()
    return made


def replica(name: str, *models: str) -> Any:
    return SimpleNamespace(replica_id=name, multiplexed_model_ids=set(models))


def order(router: FewestInHand, replicas: list[Any], model: str = "") -> list[str]:
    request: Any = SimpleNamespace(metadata=SimpleNamespace(multiplexed_model_id=model))
    return [rank[0].replica_id for rank in asyncio.run(router.choose_replicas(replicas, request))]


def test_the_replica_with_the_fewest_in_hand_comes_first(router: FewestInHand) -> None:
    a, b = replica("a"), replica("b")
    router.on_send_request("a")
    assert order(router, [a, b]) == ["b", "a"]
    router.on_request_completed("a", "request")
    router.on_send_request("b")
    assert order(router, [a, b]) == ["a", "b"]


def test_sixteen_requests_are_eight_and_eight(router: FewestInHand) -> None:
    replicas = [replica("a"), replica("b")]
    for _ in range(16):
        router.on_send_request(order(router, replicas)[0])
    assert dict(router.in_hand) == {"a": 8, "b": 8}


def test_a_model_is_loaded_by_a_second_replica_when_the_first_has_its_hands_full(router: FewestInHand) -> None:
    holds, empty = replica("holds", "digits@1"), replica("empty")
    for _ in range(LOADING):
        assert order(router, [empty, holds], "digits@1")[0] == "holds"
        router.on_send_request("holds")
    router.on_send_request("holds")
    assert order(router, [empty, holds], "digits@1")[0] == "empty"
