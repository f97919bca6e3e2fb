"""Whatever the OpenAPI document allows, and what it does not: schemathesis asks, nothing breaks, every answer is as documented."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from casebook import Layer, describe_case, write_case, write_cohort
from rayters.serving.app import create_app
from rayters.serving.backend import InProcess
from rayters.serving.registry import promote, publish
from rayters.serving.settings import Limits, Settings
from rayters.serving.tokens import issue

schemathesis = pytest.importorskip("schemathesis")
CHECKS = (
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
)
GREY = np.arange(24 * 20, dtype=np.uint32).astype(np.uint8).reshape(24, 20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Settings:
    folder = tmp_path_factory.mktemp("served")
    card = publish(str(folder / "models"), "digits", tiny_model)
    promote(str(folder / "models"), "digits", card.version)
    layers = {Layer(id="anna"): (GREY > 99).astype(np.uint8)}
    case = write_case(
        folder / "cohort/a.ome.zarr", GREY[None], spacing_um=(1.0, 1.0), classes=("bg", "fg"), layers=layers
    )
    write_cohort(folder / "cohort", [describe_case(case, split="train", group="g")], name="c", classes=("bg", "fg"))
    return Settings(
        models=str(folder / "models"),
        cohorts=(str(folder / "cohort"),),
        storage=str(folder / "serving"),
        tokens=str(folder / "tokens.json"),
        limits=Limits(requests_per_second=0, upload_bytes=2**16, pixel_bytes=2**20),
    )


@pytest.fixture(scope="module")
def token(served: Settings) -> str:
    return issue(served.tokens, scope="admin", days=1)


OPERATIONS = 15  # as many as the document has; one that is added is asked too


@pytest.mark.parametrize("number", range(OPERATIONS))
def test_every_operation_answers_as_it_is_documented(served: Settings, token: str, number: int) -> None:
    # 501 is deliberate, and documented where it can occur: whole-case jobs without Ray
    api = schemathesis.openapi.from_asgi("/openapi.json", create_app(served, InProcess(served)))
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == OPERATIONS

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[number].as_strategy())
    def ask(case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {token}"})
        assert response.status_code < 500 or response.status_code == 501, response.text
        case.validate_response(response, checks=CHECKS)

    ask()
