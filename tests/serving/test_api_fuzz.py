"""Requests made from the description of the API: none is answered with a 5xx, or unlike described."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from ensemw2s.serving.api import make_api
from ensemw2s.serving.settings import Limits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def described(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def expected():
    checks.load_all_checks()
    names = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
    return [checks.CHECKS.get_one(name) for name in names]


@pytest.mark.parametrize("path", make_api(None, Limits()).openapi()["paths"])
def test_no_request_is_answered_with_a_server_error(described, expected, path):
    (operation,) = described[path].values()

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def every_request(case):
        case.call_and_validate(checks=expected)

    every_request()
