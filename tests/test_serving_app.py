"""The web application as its clients see it, with one process behind it and no Ray."""

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import httpx
import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from casebook import Layer, describe_case, write_case, write_cohort
from rayters.inference.predict import predict_picture
from rayters.serving.app import create_app
from rayters.serving.backend import InProcess
from rayters.serving.registry import promote, publish
from rayters.serving.settings import Limits, Replicas, Settings, from_json
from rayters.serving.tokens import issue
from rayters.training.model import load_model

GREY = (np.arange(24 * 20, dtype=np.uint32) * 7 % 251).astype(np.uint8).reshape(24, 20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Settings:
    """A registry with one model, a cohort with one case."""
    folder = tmp_path_factory.mktemp("served")
    card = publish(str(folder / "models"), "digits", tiny_model, spacing_um=(1.0, 1.0))
    promote(str(folder / "models"), "digits", card.version)
    layers = {Layer(id="anna"): (GREY > 99).astype(np.uint8), Layer(id="ben"): (GREY > 120).astype(np.uint8)}
    case = write_case(
        folder / "cohort/a.ome.zarr", GREY[None], spacing_um=(1.0, 1.0), classes=("bg", "fg"), layers=layers
    )
    write_cohort(
        folder / "cohort", [describe_case(case, split="train", group="g")], name="two annotators", classes=("bg", "fg")
    )
    return Settings(
        models=str(folder / "models"),
        cohorts=(str(folder / "cohort"),),
        storage=str(folder / "serving"),
        tokens=str(folder / "tokens.json"),
        limits=Limits(upload_bytes=200_000, pixel_bytes=2**20, requests_per_second=0),
    )


@pytest.fixture(scope="module")
def tokens(served: Settings) -> dict[str, str]:
    return {scope: issue(served.tokens, scope=scope, days=1) for scope in ("predict", "admin")}


def client_of(settings: Settings, token: str | None) -> TestClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    app = create_app(settings, InProcess(settings))
    return TestClient(app, headers=headers, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(served: Settings, tokens: dict[str, str]) -> TestClient:
    return client_of(served, tokens["predict"])


@pytest.fixture(scope="module")
def expected(tiny_model: Path):
    return predict_picture(load_model(tiny_model), GREY[None])


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_picture_comes_back_as_the_label_map_that_the_model_gives(client: TestClient, expected) -> None:
    response = client.post("/v1/predict/digits", content=png(GREY))
    assert np.array_equal(picture(response), expected.labels)
    assert response.headers["x-rayters-model"].startswith("digits@")


def test_the_posterior_and_the_uncertainty_come_back_whole(client: TestClient, expected) -> None:
    response = client.post("/v1/predict/digits?answer=posterior", content=png(GREY))
    assert np.allclose(np.load(io.BytesIO(response.content)), expected.posterior, atol=1e-6)
    grey = picture(client.post("/v1/predict/digits?answer=uncertainty", content=png(GREY)))
    assert np.abs(grey / 255 - expected.uncertainty).max() < 1 / 255


def test_a_picture_comes_back_as_each_annotator_would_draw_it(client: TestClient, tiny_model: Path, expected) -> None:
    for index, who in enumerate(("anna", "ben")):
        response = client.post(f"/v1/predict/digits?answer=annotator&annotator={who}", content=png(GREY))
        assert np.array_equal(picture(response), expected.annotator_labels[index])


def test_an_annotator_whom_the_model_does_not_know_is_said(client: TestClient) -> None:
    response = client.post("/v1/predict/digits?answer=annotator&annotator=zoe", content=png(GREY))
    assert response.status_code == 422
    assert "anna, ben" in response.json()["detail"]


def test_a_flat_nifti_comes_back_as_nifti_when_asked(client: TestClient, expected) -> None:
    response = client.post("/v1/predict/digits?as=nifti", content=png(GREY))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(response.content))
    assert np.array_equal(np.asarray(image.dataobj)[:, :, 0].T, expected.labels)


def test_a_region_of_a_case_is_what_the_whole_case_has_there(client: TestClient, served: Settings, expected) -> None:
    for case in ("cohort/a", f"{served.cohorts[0]}/a.ome.zarr"):
        body = {"case": case, "origin_px0": [4, 3], "size_px0": [9, 8]}
        here = picture(client.post("/v1/predict/digits/region", json=body))
        assert np.array_equal(here, expected.labels[4:13, 3:11])
    whole = picture(client.post("/v1/predict/digits/region", json={"case": "cohort/a"}))
    assert np.array_equal(whole, expected.labels)


def test_models_are_listed_with_their_cards(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()
    assert (card["name"], card["annotators"], card["spacing_um"]) == ("digits", ["anna", "ben"], [1.0, 1.0])
    assert client.get(f"/v1/models/{card['id']}").json() == card


def test_health_needs_no_token_and_metrics_count_requests(client: TestClient, served: Settings) -> None:
    assert client_of(served, None).get("/health").json() == {"status": "ok"}
    client.get("/v1/models")
    assert 'rayters_requests_total{route="/v1/models",status="200"}' in client.get("/metrics").text


def test_a_promoted_version_answers_from_then_on(
    served: Settings, tokens: dict[str, str], another_tiny_model: Path, tmp_path: Path, tiny_model: Path
) -> None:
    own = replace(served, models=str(tmp_path))
    old = publish(str(tmp_path), "m", tiny_model)
    new = publish(str(tmp_path), "m", another_tiny_model)
    promote(str(tmp_path), "m", old.version)
    client = client_of(own, tokens["admin"])
    assert client.post("/v1/models/m/promote", json={"version": new.version}).json()["version"] == new.version
    response = client.post("/v1/predict/m", content=png(GREY))
    assert response.headers["x-rayters-model"] == new.id
    wanted = predict_picture(load_model(another_tiny_model), GREY[None]).labels
    assert np.array_equal(picture(response), wanted)
    assert client.post("/v1/models/m/promote", json={"version": "0" * 12}).status_code == 404


# who may


ROUTES = [
    ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/digits"), ("POST", "/v1/predict/digits"),
    ("POST", "/v1/predict/digits/region"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/0123456789abcdef"),
    ("DELETE", "/v1/jobs/0123456789abcdef"), ("POST", "/v1/models/digits/promote"), ("GET", "/v1/cohorts"),
    ("GET", "/v1/cohorts/cohort/cases"), ("GET", "/v1/cohorts/cohort/confusions"), ("GET", "/v1/cohorts/cohort/cases/a/thumbnail.png"),
]  # fmt: skip


def test_no_route_is_forgotten(served: Settings) -> None:
    document = create_app(served, InProcess(served)).openapi()
    written = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    fields = {"model": "digits", "id": "0123456789abcdef", "cohort": "cohort", "case": "a"}
    assert {(method, path.format(**fields)) for method, path in written} == {("GET", "/health"), *ROUTES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_token_and_with_a_wrong_one_nothing_is_answered(served: Settings, method: str, path: str) -> None:
    client = client_of(served, None)
    for headers in ({}, {"Authorization": "Bearer rayters_01234567_" + "a" * 43}, {"Authorization": "Basic YTpi"}):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401, response.text
        assert response.headers["www-authenticate"] == "Bearer"


def test_an_expired_token_is_refused(served: Settings, tmp_path: Path) -> None:
    own = replace(served, tokens=str(tmp_path / "t.json"))
    secret = issue(own.tokens, scope="admin", days=1)
    document = json.loads(Path(own.tokens).read_text())
    document["tokens"][0]["expires_on"] = "2020-01-01T00:00:00+00:00"
    Path(own.tokens).write_text(json.dumps(document))
    response = client_of(own, secret).get("/v1/models")
    assert response.status_code == 401
    assert "expired" in response.json()["detail"]


def test_a_token_for_predictions_promotes_nothing(client: TestClient) -> None:
    response = client.post("/v1/models/digits/promote", json={"version": "0" * 12})
    assert response.status_code == 403


def test_a_page_of_another_site_is_told_nothing_by_default(served: Settings, tokens: dict[str, str]) -> None:
    evil = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    client = client_of(served, tokens["predict"])
    assert "access-control-allow-origin" not in client.options("/v1/models", headers=evil).headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=evil).headers
    friendly = client_of(replace(served, origins=("https://lab.example",)), tokens["predict"])
    allowed = friendly.get("/v1/models", headers={"Origin": "https://lab.example"}).headers
    assert allowed["access-control-allow-origin"] == "https://lab.example"
    assert "access-control-allow-origin" not in friendly.get("/v1/models", headers=evil).headers


def test_too_many_requests_are_told_when_to_come_back(served: Settings, tokens: dict[str, str]) -> None:
    slow = replace(served, limits=replace(served.limits, requests_per_second=0.5, burst=2))
    client = client_of(slow, tokens["predict"])
    statuses = [client.get("/v1/models").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert int(client.get("/v1/models").headers["retry-after"]) in (1, 2)


# what may be sent


def test_a_claim_of_ten_gigabytes_is_refused_before_it_is_read(client: TestClient) -> None:
    for path in ("/v1/predict/digits", "/v1/predict/digits/region", "/v1/jobs"):
        response = client.post(path, content=b"x", headers={"Content-Length": str(10 * 2**30)})
        assert response.status_code == 413, path


def test_a_body_that_never_ends_is_cut_off(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield bytes(10_000)

    assert client.post("/v1/predict/digits", content=endless()).status_code == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 415), (b"hello", 415), (png(GREY)[:60], 422), (png(GREY)[:-30], 422), (b"\x89PNG\r\n\x1a\n", 422)],
)
def test_what_is_no_picture_is_refused(client: TestClient, body: bytes, status: int) -> None:
    response = client.post("/v1/predict/digits", content=body)
    assert response.status_code == status
    assert response.json()["detail"]


def test_colours_for_a_grey_model_are_refused_in_words(client: TestClient) -> None:
    response = client.post("/v1/predict/digits", content=png(np.stack([GREY] * 3, axis=-1)))
    assert response.status_code == 422
    assert "3 channels" in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"case": "/etc/passwd"}, {"case": "http://169.254.169.254/latest"}, {"case": "s3://other/case"},
        {"case": "cohort/../../etc"}, {"case": "file:///etc/passwd"}, {"case": "cohort/nobody"},
        {"case": "simplecache::http://evil.example/a"}, {"case": "memory://a"},
    ],
)  # fmt: skip
def test_traversal_and_forged_requests_are_refused(client: TestClient, body: dict[str, str]) -> None:
    for path, extra in (("/v1/predict/digits/region", {}), ("/v1/jobs", {"model": "digits"})):
        response = client.post(path, json=body | extra)
        assert response.status_code == 404, response.text
        assert "etc" not in response.text


def test_a_region_that_was_read_from_a_store_is_answered_from_the_cache(
    served: Settings, tokens: dict[str, str], tmp_path: Path
) -> None:
    url = "memory://elsewhere/a.ome.zarr"
    case = write_case(url, GREY[None], spacing_um=(1.0, 1.0), classes=("bg", "fg"), layers={})
    row = describe_case(case, split="test", group="g")
    write_cohort("memory://elsewhere", [row], name="elsewhere", classes=("bg", "fg"))
    kept = Replicas(cache_folder=str(tmp_path / "cache"))
    client = client_of(replace(served, cohorts=("memory://elsewhere",), replicas=kept), tokens["predict"])
    box = {"case": "elsewhere/a", "origin_px0": [0, 0], "size_px0": [24, 20]}
    first = picture(client.post("/v1/predict/digits/region", json=box))
    fsspec.filesystem("memory").rm("/elsewhere/a.ome.zarr/0", recursive=True)
    assert np.array_equal(picture(client.post("/v1/predict/digits/region", json=box)), first)
    assert client.post("/v1/predict/digits/region", json=box | {"case": "nowhere/a"}).status_code == 404


def test_a_region_that_leaves_its_case_is_refused(client: TestClient) -> None:
    for box in ([0, 0], [999, 999]), ([20, 0], [9, 9]), ([0], [1]):
        body = {"case": "cohort/a", "origin_px0": box[0], "size_px0": box[1]}
        assert client.post("/v1/predict/digits/region", json=body).status_code == 422


def test_an_answer_that_takes_too_long_is_given_up(
    served: Settings, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async def never(self, work):
        await asyncio.sleep(60)

    monkeypatch.setattr(InProcess, "answer", never)
    hasty = replace(served, limits=replace(served.limits, seconds=0.05))
    response = client_of(hasty, tokens["predict"]).post("/v1/predict/digits", content=png(GREY))
    assert response.status_code == 504
    assert "0.05 s" in response.json()["detail"]


def test_what_breaks_inside_is_not_shown_outside(
    served: Settings, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self, work):
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(InProcess, "answer", broken)
    response = client_of(served, tokens["predict"]).post("/v1/predict/digits", content=png(GREY))
    assert response.status_code == 500
    assert "secret" not in response.text


def test_every_answer_carries_the_headers_that_shut_a_browsers_doors(client: TestClient) -> None:
    headers = client.get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-request-id"]


def test_logs_have_neither_tokens_nor_names(
    client: TestClient, tokens: dict[str, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from rayters.serving.logs import LOGGER

    LOGGER.propagate = True
    with caplog.at_level("INFO", logger=LOGGER.name):
        client.post("/v1/predict/digits?annotator=mrs-smith&answer=annotator", content=png(GREY))
    LOGGER.propagate = False
    line = json.loads(caplog.messages[-1])
    assert (line["route"], line["status"], line["bytes_in"]) == ("/v1/predict/{model}", 422, len(png(GREY)))
    assert len(line["holder"]) == 8
    assert tokens["predict"].rpartition("_")[2] not in caplog.text
    assert "mrs-smith" not in caplog.text


# how it is documented


def test_every_route_is_described_and_every_refusal_has_its_shape(served: Settings) -> None:
    document = create_app(served, InProcess(served)).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            for status, response in operation["responses"].items():
                if status >= "400":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)
            if path != "/health":
                assert operation["security"], (method, path)


def test_the_examples_of_the_documentation_fit_their_schemas(served: Settings) -> None:
    import jsonschema

    parts = create_app(served, InProcess(served)).openapi()["components"]["schemas"]
    seen = 0
    for schema in parts.values():
        for rule in schema.get("properties", {}).values():
            for example in rule.get("examples", []):
                jsonschema.validate(example, {**rule, "components": {"schemas": parts}})
                seen += 1
    assert seen >= 8


def test_settings_survive_a_config_file_and_misspelt_ones_are_refused() -> None:
    made = from_json({"models": "m", "cohorts": ["a"], "limits": {"jobs": 2}, "replicas": {"gpus": 0.25}})
    assert (made.cohorts, made.limits.jobs, made.replicas.gpus) == (("a",), 2, 0.25)
    with pytest.raises(ValueError, match="modles is no setting of Settings"):
        from_json({"modles": "m"})
    with pytest.raises(ValueError, match="gpu is no setting of Replicas"):
        from_json({"replicas": {"gpu": 1}})
