"""A case that we wrote opens in neuroglancer, in a real browser: the picture and one layer per annotator are on the screen."""

import io
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casebook import Layer, write_case
from casebook.one_pass import Storage

neuroglancer = pytest.importorskip("neuroglancer")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-extensions",
        "--hide-scrollbars",
    ),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=900,700"),
)
GREEN, MAGENTA, SIDE = (0, 255, 0), (255, 0, 255), 300
SHADER = """void main() {
  emitRGB(vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)), toNormalized(getDataValue(2))));
}"""


class Ranges(SimpleHTTPRequestHandler):
    """A folder over HTTP for a page of another origin, with the byte ranges that shards are read by."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return None
        data, wanted = path.read_bytes(), self.headers.get("Range", "")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last)) if last else 0
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        return io.BytesIO(data[start:stop])

    def end_headers(self):
        for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Headers", "Access-Control-Expose-Headers"):
            self.send_header(name, "*")
        super().end_headers()

    def do_OPTIONS(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def viewer(tmp_path):
    """neuroglancer's own server and client, shown by a headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium): nothing can show the viewer")
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, profile, str(viewer)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield viewer
    browser.terminate()
    browser.wait(20)
    neuroglancer.stop()


def written(path, **options):
    """A blue picture; anna drew the upper left quarter, ben the lower right one."""
    image = np.zeros((3, SIDE, SIDE), np.uint8)
    image[2] = 200
    anna, ben = (np.zeros((SIDE, SIDE), np.uint8) for _ in range(2))
    anna[: SIDE // 2, : SIDE // 2] = 1
    ben[SIDE // 2 :, SIDE // 2 :] = 1
    layers = {Layer(id="anna"): anna, Layer(id="ben"): ben}
    return write_case(path, image, spacing_um=(0.5, 0.5), classes=("background", "tumour"), layers=layers, **options)


def show(viewer, case, url):
    """The picture, and every annotator's layer in an own colour; the whole case in one window."""
    source = f"{url}/{Path(case.url).name}"
    with viewer.txn() as state:
        transform = neuroglancer.CoordinateSpaceTransform(
            output_dimensions=neuroglancer.CoordinateSpace(
                names=["c^", "y", "x"], units=["", "um", "um"], scales=[1, 0.5, 0.5]
            )
        )
        state.layers["image"] = neuroglancer.ImageLayer(
            source=neuroglancer.LayerDataSource(url=f"{source}/|zarr3:", transform=transform), shader=SHADER
        )
        for layer, colour in zip(case.layers, (GREEN, MAGENTA), strict=True):
            state.layers[layer.id] = neuroglancer.SegmentationLayer(
                source=f"{source}/labels/{layer.id}/|zarr3:", segments=[1], selected_alpha=1, not_selected_alpha=0,
                segment_colors={1: "#{:02x}{:02x}{:02x}".format(*colour)},
            )  # fmt: skip
        state.layout, state.show_axis_lines, state.show_scale_bar = "xy", False, False
        state.dimensions = neuroglancer.CoordinateSpace(names=["y", "x"], units="um", scales=[0.5, 0.5])
        state.position = [SIDE / 2, SIDE / 2]
        state.cross_section_scale = 1


@pytest.mark.parametrize(
    "options",
    [{}, {"storage": Storage(image_chunk_px=(64, 64), label_chunk_px=(64, 64), shards="always", codec="lz4")}],
    ids=["plain", "shards"],
)
def test_the_picture_and_one_layer_per_annotator_are_on_the_screen(tmp_path, served, viewer, options):
    case = written(tmp_path / "a.ome.zarr", **options)
    show(viewer, case, served)
    shot = viewer.screenshot(size=[400, 400])  # waits until all chunks in view are there
    (tmp_path / "shot.png").write_bytes(shot.screenshot.image)
    seen = np.asarray(Image.open(io.BytesIO(shot.screenshot.image)).convert("RGB")).astype(int)
    middle = seen.shape[0] // 2, seen.shape[1] // 2
    at = {(sy, sx): tuple(seen[middle[0] + 60 * sy, middle[1] + 60 * sx]) for sy in (-1, 1) for sx in (-1, 1)}
    assert at == {(-1, -1): GREEN, (1, 1): MAGENTA, (-1, 1): (0, 0, 200), (1, -1): (0, 0, 200)}
    assert {layer.name for layer in viewer.state.layers} == {"image", "anna", "ben"}
