"""What a file may say of its routers, where the schema's own words do not tell."""

from __future__ import annotations

import pytest
from paceline_api.router_spec import TracingSpec
from pydantic import ValidationError

ENDPOINT = "http://collector:4318"


@pytest.mark.parametrize("share", [0, 100, "0.125", "99.999", "100.000"])
def test_a_share_of_requests_is_traced(share: int | str) -> None:
    assert TracingSpec(endpoint=ENDPOINT, sample_percent=share).sample_percent == share


@pytest.mark.parametrize("share", [-1, 101, "100.001", "100.5", "1e1", "12.3456", ""])
def test_a_share_beyond_all_or_none_is_refused_at_the_border(share: int | str) -> None:
    with pytest.raises(ValidationError):
        TracingSpec(endpoint=ENDPOINT, sample_percent=share)
