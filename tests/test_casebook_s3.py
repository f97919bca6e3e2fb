"""Object stores: the same cases, conditional writes, honest errors, and no credential anywhere."""

import http.client
import os
import pickle
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import s3fs
from PIL import Image

from casebook import (
    CaseNotFoundError,
    Cohort,
    ConflictError,
    CorruptChunkError,
    Layer,
    StoreError,
    describe_case,
    open_case,
    open_cohort,
    put_cases,
    write_case,
    write_cohort,
)
from casebook.arrays import forget_handles
from casebook.conditional import create_bytes, replace_bytes
from casebook.layers import add_layer, remove_layer
from casebook.location import read_bytes, store_errors

ROOT = Path(__file__).parents[1]
RGW = ROOT.parent / "shared/s3/rgw"
SECRET = "hunter2hunter2"
IMAGE = np.random.default_rng(0).integers(0, 255, (3, 700, 600), dtype=np.uint8)
LABELS = (IMAGE[0] > 128).astype(np.uint8)
ANNA, BEN = Layer(id="anna"), Layer(id="ben")
SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION")


def start_moto():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = (f"http://{host}:{port}", "key", SECRET, "us-east-1", "us-east-1")
    return dict(zip(SETTINGS, values, strict=True)), server.stop


def start_radosgw(folder):
    """A real object store on loopback; ceph's own tools start and stop it."""
    environment = {**os.environ, "RGW_DIR": str(folder)}
    out = subprocess.run(
        [str(RGW), "up", "5559"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert out.returncode == 0, out.stderr
    words = out.stdout.replace("export ", "").split()
    stop = lambda: subprocess.run([str(RGW), "down"], env=environment, timeout=60, check=False)
    return dict(word.split("=", 1) for word in words), stop


@pytest.fixture(scope="module", params=["moto", "radosgw"])
def server(request, tmp_path_factory):
    if request.param == "radosgw" and (shutil.which("radosgw") is None or not RGW.exists()):
        pytest.skip("radosgw is not on this machine")
    settings, stop = start_moto() if request.param == "moto" else start_radosgw(tmp_path_factory.mktemp("rgw"))
    yield settings
    stop()


@pytest.fixture
def store(server, monkeypatch):
    """The environment of a process that may use the bucket `lab`."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    fresh()
    fs = s3fs.S3FileSystem()
    if not fs.exists("lab"):
        fs.mkdir("lab")
    yield server
    fresh()


def fresh():
    forget_handles()
    s3fs.S3FileSystem.clear_instance_cache()


def a_case(name="a"):
    return write_case(
        f"s3://lab/{name}.ome.zarr",
        IMAGE,
        spacing_um=(0.5, 0.5),
        classes=("bg", "fg"),
        layers={ANNA: LABELS},
        existing="replace",
    )


def test_a_case_lives_in_a_bucket_as_it_does_on_a_disk(store):
    case = a_case()
    assert (case.read_image(0, (100, 100), (555, 444)) == IMAGE[:, 100:655, 100:544]).all()
    assert (case.read_labels(("anna",), 0, (100, 100), (555, 444))[0] == LABELS[100:655, 100:544]).all()
    case = add_layer(case.url, BEN, LABELS)
    assert case.annotators == ("anna", "ben")
    assert remove_layer(case.url, "anna").annotators == ("ben",)


def test_a_cohort_lives_in_a_bucket(store):
    cohort = write_cohort(
        "s3://lab/cohort",
        [describe_case(a_case("cohort/cases/a"), split="train", group="p")],
        name="c",
        classes=("bg", "fg"),
    )
    assert open_cohort("s3://lab/cohort") == cohort
    assert cohort.cases[0].url == "s3://lab/cohort/cases/a.ome.zarr"


def test_nothing_whole_is_visible_before_the_end(store):
    class Stops:
        shape, dtype, identity = IMAGE.shape, "uint8", "x"

        def read(self, origin, size):
            raise StoreError("unplugged: plug it in")

    with pytest.raises(StoreError):
        write_case("s3://lab/half.ome.zarr", Stops(), spacing_um=(1, 1), classes=("bg", "fg"), layers={})
    with pytest.raises(CaseNotFoundError):
        open_case("s3://lab/half.ome.zarr")


def test_of_many_who_add_at_once_none_is_lost(store):
    url = "s3://lab/counter"
    replace_bytes(url, lambda old: b"")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: replace_bytes(url, lambda old: (old or b"") + bytes([i])), range(6)))
    assert sorted(read_bytes(url)) == list(range(6))


def test_of_writers_who_fill_one_cohort_at_once_each_gets_the_cases_in(store):
    fs = s3fs.S3FileSystem()
    if fs.exists("lab/shared"):
        fs.rm("lab/shared", recursive=True)
    row = describe_case(a_case("shared/cases/a"), split="train", group="p")
    empty = Cohort(
        url="s3://lab/shared", name="c", classes=("bg", "fg"), annotators=(), stable_annotators=True, reference=None,
        licence=None, cases=(),
    )  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: put_cases("s3://lab/shared", [replace(row, case=f"c{k}")], empty=empty), range(4)))
    assert [row.case for row in open_cohort("s3://lab/shared").cases] == ["c0", "c1", "c2", "c3"]


def test_what_must_not_exist_yet_is_created_once(store):
    url = "s3://lab/once"
    if s3fs.S3FileSystem().exists("lab/once"):
        s3fs.S3FileSystem().rm("lab/once")
    create_bytes(url, b"first")
    with pytest.raises(ConflictError, match="exists already"):
        create_bytes(url, b"second")
    assert read_bytes(url) == b"first"


def test_a_truncated_object_is_named(store):
    case = a_case("broken")
    fs = s3fs.S3FileSystem()
    key = "lab/broken.ome.zarr/0/c/0/0/0"
    fs.pipe_file(key, fs.cat_file(key)[:-100])
    with pytest.raises(CorruptChunkError, match=f"s3://{key}.*restore"):
        case.read_image(0, (0, 0), (10, 10))
    fs.rm(key)
    with pytest.raises(CorruptChunkError, match="is missing"):
        case.read_image(0, (0, 0), (10, 10))


def test_a_wrong_key_names_the_bucket_and_never_the_key(store, monkeypatch):
    case = a_case("secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" + SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobodyknowsme")
    fresh()
    if "moto" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        pytest.skip("moto lets every key in")
    for attempt in (
        lambda: open_case(case.url),
        lambda: case.read_image(0, (0, 0), (9, 9)),
        lambda: add_layer(case.url, BEN, LABELS),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert "lab" in str(caught.value)
        assert SECRET not in chain(caught.value)
        assert "nobodyknowsme" not in str(caught.value)


def chain(error):
    """Everything an error and its causes say."""
    text = ""
    while error is not None:
        text, error = text + repr(error), error.__cause__
    return text


def test_a_bucket_that_does_not_exist_is_named(store):
    with pytest.raises((CaseNotFoundError, StoreError), match="nosuchbucket"):
        open_case("s3://nosuchbucket/a.ome.zarr")
    with pytest.raises((CaseNotFoundError, StoreError), match="nosuchbucket"):
        write_case("s3://nosuchbucket/a.ome.zarr", IMAGE, spacing_um=(1, 1), classes=("bg", "fg"), layers={})


def test_no_secret_is_in_what_is_pickled_or_stored(store):
    case = a_case("clean")
    case.read_image(0, (0, 0), (9, 9))
    secret = store["AWS_SECRET_ACCESS_KEY"].encode()
    assert secret not in pickle.dumps(case)
    fs = s3fs.S3FileSystem()
    documents = [fs.cat_file(path) for path in fs.find("lab/clean.ome.zarr") if path.endswith(".json")]
    assert documents
    assert not any(secret in document for document in documents)


def run_job(*arguments):
    """jobs/ingest.py in a process of its own, with this one's environment."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "storage"))
    command = [sys.executable, str(ROOT / "jobs/ingest.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": paths}, check=False)


def test_the_job_fills_a_bucket_and_leaves_no_credential_there_nor_in_what_it_says(store, tmp_path):
    for name in ("a", "b"):
        Image.fromarray(np.moveaxis(IMAGE, 0, -1)).save(tmp_path / f"{name}.png")
        Image.fromarray(LABELS * 255).save(tmp_path / f"{name}_anna.png")
    fs = s3fs.S3FileSystem()
    if fs.exists("lab/job"):
        fs.rm("lab/job", recursive=True)
    done = run_job("--source", tmp_path, "--to", "s3://lab/job", "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert [row.case for row in open_cohort("s3://lab/job").cases] == ["a", "b"]
    again = run_job("--source", tmp_path, "--to", "s3://lab/job")
    assert b"cases already there  2" in again.stdout, again.stdout
    fs.invalidate_cache()
    said = [done.stdout, done.stderr, again.stdout, again.stderr, (tmp_path / "rows.json").read_bytes()]
    said += [fs.cat_file(path) for path in fs.find("lab/job")]
    assert len(said) > 10
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        if len(store[name]) > 5:  # moto's key id is the word 'key'
            assert not any(store[name].encode() in text for text in said)


def test_a_job_with_a_wrong_key_names_the_bucket_and_says_no_key(store, tmp_path, monkeypatch, request):
    if "moto" in request.node.name:
        pytest.skip("moto lets every key in")
    Image.fromarray(np.moveaxis(IMAGE, 0, -1)).save(tmp_path / "a.png")
    Image.fromarray(LABELS * 255).save(tmp_path / "a_anna.png")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobodyknowsme")
    done = run_job("--source", tmp_path, "--to", "s3://lab/refused")
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert "bucket 'lab'" in said
    assert "Traceback" not in said
    assert SECRET not in said
    assert "nobodyknowsme" not in said


def test_an_error_that_quotes_a_credential_is_passed_on_without_it(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobodyknowsme")

    def fails():
        with store_errors("s3://lab/a"):
            raise OSError(f"the store had {SECRET} for nobodyknowsme; X-Amz-Signature=1234")

    with pytest.raises(StoreError) as caught:
        fails()
    for secret in (SECRET, "nobodyknowsme", "1234"):
        assert secret not in str(caught.value)
        assert secret.encode() not in pickle.dumps(caught.value)


class Fault(BaseHTTPRequestHandler):
    """Passes requests on to the real server, and misbehaves as its server's `plan` says."""

    protocol_version = "HTTP/1.1"

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.server.plan(self.command, self.path)
        if what == "503":
            return self.answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
        if what == "slow":
            time.sleep(0.4)
        back = http.client.HTTPConnection(self.server.behind, timeout=20)
        back.request(self.command, self.path, body, dict(self.headers))
        reply = back.getresponse()
        data = reply.read()
        headers = {k: v for k, v in reply.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        if what == "cut" and len(data) > 50:
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        return self.answer(reply.status, headers, data)

    def answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one  # noqa: N815

    def log_message(self, *_):
        pass


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def faulty(store, monkeypatch):
    """Everything goes through a proxy; returns a function that sets how it misbehaves."""
    assert issubclass(Proxy, socketserver.TCPServer)
    proxy = Proxy(("127.0.0.1", 0), Fault)
    proxy.behind = urlsplit(store["AWS_ENDPOINT_URL"]).netloc
    proxy.plan = lambda command, path: "pass"
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    fresh()

    def misbehave(plan):
        proxy.plan = plan

    yield misbehave
    proxy.shutdown()
    proxy.server_close()


def every(number, what):
    """Misbehaves on every n-th GET of a chunk."""
    count = iter(range(10**9))
    return lambda command, path: what if command == "GET" and "/c/" in path and next(count) % number == 0 else "pass"


@pytest.mark.parametrize("what", ["503", "slow", "cut"])
def test_passing_faults_are_survived_with_the_right_pixels(store, faulty, what):
    case = a_case("faulty")
    faulty(every(2, what))
    assert (case.read_image(0, (0, 0), (700, 600)) == IMAGE).all()
    assert (case.read_labels(("anna",), 0, (0, 0), (700, 600))[0] == LABELS).all()


def test_a_server_that_stays_down_is_an_error_and_not_a_hang(store, faulty):
    case = a_case("down")
    faulty(lambda command, path: "503")
    start = time.monotonic()
    with pytest.raises(StoreError, match="did not answer"):
        case.read_image(0, (0, 0), (9, 9))
    with pytest.raises(StoreError, match="lab"):
        open_case(case.url)
    assert time.monotonic() - start < 60


def test_a_write_that_met_faults_is_whole(store, faulty):
    count = iter(range(10**9))
    faulty(lambda command, path: "503" if command == "PUT" and next(count) % 3 == 0 else "pass")
    case = a_case("written")
    faulty(lambda command, path: "pass")
    assert (case.read_image(0, (0, 0), (700, 600)) == IMAGE).all()
