"""The page, in a real browser: what it shows, on which screens, with which hands, and what it says when something is wrong.

Set RAYTERS_SCREENSHOTS to a folder to keep what was seen.
"""

import asyncio
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import s3fs
import uvicorn
from PIL import Image

from casebook import Layer, describe_case, write_case, write_cohort
from rayters.serving.app import create_app
from rayters.serving.backend import InProcess
from rayters.serving.registry import promote, publish
from rayters.serving.settings import Settings
from rayters.serving.tokens import issue

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-extensions",
        "--remote-debugging-port=0",
    ),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIDE = 128
ANNA, BEN, CARL = (230, 75, 53), (77, 187, 213), (0, 160, 135)  # the first three annotators' colours


class Browser:
    """One tab of a headless Chromium, through its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: (profile / "DevToolsActivePort").exists(), "the browser started", 60)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        tabs = httpx.get(f"http://127.0.0.1:{port}/json").json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.loop, self.number = asyncio.new_event_loop(), 0
        self.complaints: list[str] = []  # what the browser logs as an error
        self.loop.run_until_complete(self._connect(address))
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    async def _connect(self, address: str) -> None:
        self.http = aiohttp.ClientSession()
        self.socket = await self.http.ws_connect(address, max_msg_size=0)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, params), 60))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(str(message["params"])[:600])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screen(self, width: int, height: int, scheme: str = "light", mobile: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        about = {"key": key, "code": key if key != " " else "Space", "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def shot(self, name: str) -> np.ndarray:
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if folder := os.environ.get("RAYTERS_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(data)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)

    def close(self) -> None:
        self.loop.run_until_complete(self.http.close())
        self.process.terminate()
        self.process.wait(20)


def until(happened: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"it never came to be that {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium): nobody can look at the page")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def square(top: int, left: int) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[top : top + 64, left : left + 64] = 1
    return labels


def write_scene(url: str) -> None:
    """A blue picture of which anna, ben and carl drew three squares, that of carl half on ben's; and two more, smaller ones."""
    image = np.zeros((3, SIDE, SIDE), np.uint8)
    image[2] = 200
    layers = {Layer(id="anna"): square(0, 0), Layer(id="ben"): square(64, 64), Layer(id="carl"): square(64, 32)}
    rows = []
    for name in ("first", "second", "third"):
        case = write_case(
            f"{url}/{name}.ome.zarr", image, spacing_um=(0.5, 0.5), classes=("background", "tumour"), layers=layers
        )
        rows.append(describe_case(case, split="train", group=name))
    write_cohort(url, rows, name="Three squares", classes=("background", "tumour"))


def write_volume(url: str) -> None:
    """A bright ball on which two readers disagree by a slice."""
    z, y, x = np.ogrid[:24, :48, :48]
    ball = ((z - 12) * 2) ** 2 + (y - 24) ** 2 + (x - 24) ** 2 < 18**2
    layers = {Layer(id="one"): ball.astype(np.uint8), Layer(id="two"): np.roll(ball, 2, axis=0).astype(np.uint8)}
    case = write_case(
        f"{url}/ball.ome.zarr", (ball * 900).astype(np.int16)[None], spacing_um=(2000.0, 1000.0, 1000.0),
        classes=("background", "ball"), layers=layers,
    )  # fmt: skip
    write_cohort(url, [describe_case(case, split="test", group="g")], name="A ball", classes=("background", "ball"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_scene(str(folder / "squares"))
    write_volume(str(folder / "volume"))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tiny_model: Path) -> Iterator[str]:
    card = publish(str(folder / "models"), "digits", tiny_model, confusions=(((0.9, 0.2), (0.1, 0.8)),) * 2)
    promote(str(folder / "models"), "digits", card.version)
    yield from serving(folder, (str(folder / "squares"), str(folder / "volume")))


def serving(folder: Path, cohorts: tuple[str, ...]) -> Iterator[str]:
    """The application in this process, on a free port."""
    settings = Settings(
        models=str(folder / "models"), cohorts=cohorts, storage=str(folder / "s"), tokens=str(folder / "tokens.json")
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(settings, InProcess(settings)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server started")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    return issue(str(folder / "tokens.json"), scope="predict", days=1)


def enter(browser: Browser, address: str, token: str) -> None:
    """Opens the page; gives the token when it is asked for."""
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=address)
    until(
        lambda: browser.js("!!document.getElementById('room') && (!enter.hidden || !room.hidden)"), "the page came up"
    )
    if not browser.js("enter.hidden"):
        browser.js(f"token.value = {json.dumps(token)}; enter.requestSubmit()")
    until(lambda: browser.js("!room.hidden && confusions.childElementCount > 0"), "the cases are listed")


def in_viewer(browser: Browser, expression: str) -> Any:
    return browser.js(f"document.getElementById('viewer').contentWindow.{expression}")


def drawn(browser: Browser) -> None:
    """Waits until every chunk in view is on the screen."""
    ready = (
        "(() => { const v = document.getElementById('viewer').contentWindow.viewer; "
        "return !!v && v.isReady() && v.layerManager.managedLayers.length > 0; })()"
    )
    until(lambda: browser.js(ready), "the viewer has drawn all", 90)
    time.sleep(0.7)  # one more frame


def has_colour(picture: np.ndarray, colour: tuple[int, int, int], least: int = 200) -> bool:
    return int((np.abs(picture - np.array(colour)).max(axis=-1) <= 12).sum()) >= least


def over_blue(colour: tuple[int, int, int], alpha: float = 0.45) -> tuple[int, int, int]:
    return tuple(round(alpha * c + (1 - alpha) * b) for c, b in zip(colour, (0, 0, 200), strict=True))


def test_a_wrong_token_is_told_in_words_and_a_right_one_opens_the_page(
    browser: Browser, address: str, token: str
) -> None:
    browser.screen(1280, 800)
    browser.call("Page.navigate", url=address)
    until(lambda: browser.js("!!document.getElementById('enter') && !enter.hidden"), "the token is asked for")
    browser.js("token.value = 'rayters_01234567_wrong'; enter.requestSubmit()")
    said = until(
        lambda: browser.js("!problem.hidden && problem.textContent.includes('not known') && problem.textContent"),
        "it is told",
    )
    assert "ask for one" in said
    browser.shot("door")
    enter(browser, address, token)
    assert browser.js("problem.hidden")
    assert browser.js("document.cookie") == ""  # no script can read the session


def test_the_case_is_shown_with_everybody_on_it(browser: Browser, address: str, token: str) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    drawn(browser)
    assert in_viewer(browser, "viewer.layerManager.managedLayers.map(l => l.name)") == [
        "image", "anna", "ben", "carl", "consensus", "disagreement",
    ]  # fmt: skip
    seen = browser.shot("annotators")
    assert has_colour(seen, (0, 0, 200))
    assert has_colour(seen, over_blue(ANNA))
    assert has_colour(seen, over_blue(BEN))
    assert has_colour(seen, over_blue(CARL))


def test_the_disagreement_is_where_they_disagree(browser: Browser, address: str, token: str) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    drawn(browser)
    in_viewer(browser, "viewer.layerManager.getLayerByName('disagreement').setVisible(true)")
    for who in ("anna", "ben", "carl"):
        in_viewer(browser, f"viewer.layerManager.getLayerByName('{who}').setVisible(false)")
    drawn(browser)
    seen = browser.shot("disagreement")
    assert has_colour(seen, (0, 0, 200), least=2000)  # nobody drew there
    blue, red = seen[..., 2], seen[..., 0]
    assert int(((red > 120) & (blue < 120)).sum()) > 2000  # one of three drew there


def test_side_by_side_every_annotator_has_a_panel(browser: Browser, address: str, token: str) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    browser.js("document.querySelector('input[value=side-by-side]').click()")
    until(lambda: browser.js("document.getElementById('viewer').src.includes('column')"), "the panels are laid out")
    drawn(browser)
    browser.shot("side-by-side")
    count = in_viewer(browser, "document.querySelectorAll('.neuroglancer-layer-group-viewer').length")
    assert count == 4  # three annotators and the disagreement


def test_a_volume_is_shown_in_its_planes(browser: Browser, address: str, token: str) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    browser.js("cohort.value = 'volume'; cohort.dispatchEvent(new Event('change'))")
    until(lambda: browser.js("document.getElementById('case-title').textContent === 'ball'"), "the ball is chosen")
    drawn(browser)
    browser.shot("volume")
    assert in_viewer(browser, "viewer.layout.toJSON()") == "4panel"
    assert in_viewer(browser, "viewer.layerManager.managedLayers.filter(l => !l.isReady()).map(l => l.name)") == []


@pytest.mark.parametrize(
    ("name", "width", "scheme", "mobile"),
    [
        ("desktop", 1280, "light", False),
        ("desktop", 1280, "dark", False),
        ("phone", 390, "light", True),
        ("phone", 390, "dark", True),
    ],
)
def test_the_page_fits_phone_and_desktop_in_light_and_dark(
    browser: Browser, address: str, token: str, name: str, width: int, scheme: str, mobile: bool
) -> None:
    browser.screen(width, 844, scheme, mobile)
    enter(browser, address, token)
    drawn(browser)
    seen = browser.shot(f"{name}-{scheme}")
    assert browser.js("document.documentElement.scrollWidth") <= width  # nothing hangs over the side
    viewer = browser.js(
        "(() => { const r = document.getElementById('viewer').getBoundingClientRect(); return [r.width, r.height]; })()"
    )
    assert viewer[0] >= 0.9 * width if mobile else viewer[0] >= 0.6 * width
    assert viewer[1] >= 300
    paper = seen[2, width // 2]
    assert paper.mean() > 230 if scheme == "light" else paper.mean() < 40
    assert contrast(browser) >= 4.5
    browser.js("document.getElementById('confusions').scrollIntoView()")
    browser.shot(f"{name}-{scheme}-confusions")


def contrast(browser: Browser) -> float:
    """The least contrast of the small print, by WCAG 2."""
    colours = browser.js(
        "[...document.querySelectorAll('small, h1, button, .hint, td')].map(e => [getComputedStyle(e).color, "
        "getComputedStyle(e.closest('button') || document.body).backgroundColor])"
    )

    def luminance(text: str) -> float:
        parts = [float(v) / 255 for v in text.partition("(")[2].rstrip(")").replace(",", " ").split()[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [sorted((luminance(a), luminance(b))) for a, b in colours if a.startswith("rgb(") and b.startswith("rgb(")]
    return min((high + 0.05) / (low + 0.05) for low, high in pairs)


def test_cases_carry_thumbnails_and_agreement_and_annotators_their_confusions(
    browser: Browser, address: str, token: str
) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    until(
        lambda: browser.js("[...document.images].every(i => i.complete && i.naturalWidth > 0)"),
        "the thumbnails are there",
    )
    words = browser.js("[...document.querySelectorAll('#cases button')].map(b => b.innerText)")
    assert len(words) == 3
    # ben and carl have half of their squares in common, anna none of hers with anybody: (0.5 + 0 + 0) / 3
    assert "agreement 0.17 Dice" in words[0]
    captions = browser.js("[...document.querySelectorAll('#confusions caption')].map(c => c.textContent)")
    assert captions[:3] == ["anna", "ben", "carl"]
    assert "anna, as digits sees it" in captions


def test_everything_can_be_reached_and_done_with_the_keyboard(browser: Browser, address: str, token: str) -> None:
    browser.screen(1280, 900)
    enter(browser, address, token)
    browser.js("document.activeElement.blur()")
    reached = []
    for _ in range(14):
        browser.press("Tab")
        reached.append(browser.js("(e => e.id || e.dataset.case || e.value || e.className)(document.activeElement)"))
        if reached[-1] == "second":
            outline = browser.js("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
            browser.press("Enter")
            until(lambda: browser.js("document.getElementById('case-title').textContent === 'second'"), "it opened")
    assert {"skip", "cohort", "leave", "first", "second", "third", "viewer"} <= set(reached), reached


def test_what_goes_wrong_is_said_in_words(browser: Browser, address: str, token: str) -> None:
    browser.screen(390, 844, "dark", mobile=True)
    enter(browser, address, token)
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=f"{address}/#squares/nobody")
    said = until(
        lambda: browser.js("!!document.getElementById('problem') && !problem.hidden && problem.textContent"),
        "it is told",
    )
    assert said == "Cohort 'squares' has no such case"
    browser.shot("phone-error")
    assert browser.js("document.getElementById('problem').getAttribute('role')") == "alert"


def test_signing_out_shuts_the_door(browser: Browser, address: str, token: str) -> None:
    enter(browser, address, token)
    browser.js("leave.click()")
    until(lambda: browser.js("!enter.hidden"), "the door is shut")
    assert browser.js("fetch('/v1/cohorts').then(r => r.status)") == 401


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    values = dict(zip(names, (f"http://{host}:{port}", "key", "secret", "us-east-1"), strict=True))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("pages")  # a name of its own: every server of one process keeps one set of buckets
    yield "s3://pages/squares"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_cohort_in_a_bucket_is_shown_as_one_on_a_disk(
    browser: Browser, bucket: str, token: str, folder: Path
) -> None:
    write_scene(bucket)
    browser.screen(1280, 900)
    for address in serving(folder, (bucket,)):
        enter(browser, address, token)
        drawn(browser)
        seen = browser.shot("s3")
        assert has_colour(seen, over_blue(ANNA))
        assert has_colour(seen, over_blue(BEN))
