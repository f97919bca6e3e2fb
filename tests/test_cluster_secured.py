"""A cluster whose ports ask for a token and speak TLS: who has both gets in, who lacks one does not."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

TOKEN = "a-token-of-some-length-0123456789abcdef"
OURS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS")
ASK = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"


@dataclass(frozen=True, kw_only=True)
class Secured:
    """A head: its address, its dashboard, and what a client needs in its environment."""

    address: str
    dashboard: str
    key: dict[str, str]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    key = certificates(folder) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    port, dashboard = 46379, 48265
    head = subprocess.Popen(
        [*(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "1"),
         *("--port", str(port), "--dashboard-port", str(dashboard), "--temp-dir", f"/tmp/rayters-tls-{os.getpid()}"),
         *("--object-store-memory", "100000000", "--disable-usage-stats")],
        env=plain() | key, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for_dashboard(f"http://127.0.0.1:{dashboard}", head)
        yield Secured(address=f"{get_node_ip_address()}:{port}", dashboard=f"http://127.0.0.1:{dashboard}", key=key)
    finally:
        for process in (*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)):
            process.kill()


def plain() -> dict[str, str]:
    """This environment without anything that opens a door."""
    return {name: value for name, value in os.environ.items() if name not in OURS}


def certificates(folder: Path) -> dict[str, str]:
    """An authority of our own and a certificate of it for this machine, as Ray's variables name them."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text(f"subjectAltName=IP:{get_node_ip_address()}")
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ours", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*new, "-subj", "/CN=localhost", "-keyout", "node.key", "-out", "node.csr")
    sign = ("x509", "-req", "-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl(*sign, "-in", "node.csr", "-out", "node.crt")
    named = {"SERVER_CERT": "node.crt", "SERVER_KEY": "node.key", "CA_CERT": "ca.crt"}
    return {"RAY_USE_TLS": "1"} | {f"RAY_TLS_{name}": str(folder / file) for name, file in named.items()}


def wait_for_dashboard(url: str, head: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert head.poll() is None, head.communicate()[0][-2000:]
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.2)


def asked(secured: Secured, key: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", ASK, secured.address]
    return subprocess.run(command, env=plain() | key, capture_output=True, text=True, timeout=60)


def test_who_has_certificate_and_token_computes(secured: Secured) -> None:
    assert asked(secured, secured.key).stdout.strip() == "42"


def test_who_has_no_token_is_refused(secured: Secured, tmp_path: Path) -> None:
    no_token = {name: value for name, value in secured.key.items() if name != "RAY_AUTH_TOKEN"}
    found = asked(secured, no_token | {"HOME": str(tmp_path)})  # where no token of the user's lies
    assert found.returncode != 0
    assert "token" in found.stderr.lower()


def test_who_speaks_no_tls_is_not_heard(secured: Secured) -> None:
    in_the_clear = plain() | {name: value for name, value in secured.key.items() if name != "RAY_USE_TLS"}
    command = [sys.executable, "-c", ASK, secured.address]
    driver = subprocess.Popen(command, env=in_the_clear, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = driver.communicate(timeout=12)[1]  # Ray tries again and again
    except subprocess.TimeoutExpired:
        driver.kill()
        said = driver.communicate()[1]
    assert driver.returncode != 0
    assert "Failed to connect" in said


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong" * 8, 403), (TOKEN, 200)])
def test_the_job_port_asks_for_the_token(secured: Secured, token: str | None, status: int) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{secured.dashboard}/api/jobs/", headers=headers)
    try:
        found = urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status
