"""served_model(): the wanted model or the first, and what is said where there is none."""

from __future__ import annotations

import pytest
from paceline_planner.served_models import NoModel, served_model

LISTING = b'{"data": [{"id": "a", "max_model_len": 4096}, {"id": "b"}]}'


@pytest.mark.parametrize(
    ("listing", "wanted", "found"),
    [
        pytest.param(LISTING, None, ("a", 4096), id="the first, with its context"),
        pytest.param(LISTING, "b", ("b", None), id="the wanted one, whose context is not said"),
        pytest.param(b"", "b", ("b", None), id="the wanted one where nothing is listed"),
        pytest.param(b'{"data": [{"id": "a", "max_model_len": "x"}]}', None, ("a", None), id="a context that is none"),
    ],
)
def test_the_model_is_the_wanted_one_or_the_first(
    listing: bytes, wanted: str | None, found: tuple[str, int | None]
) -> None:
    assert served_model(listing, wanted, "--model") == found


@pytest.mark.parametrize(
    ("listing", "wanted", "says"),
    [
        pytest.param(LISTING, "c", "has no model 'c'; it lists a, b", id="not listed"),
        pytest.param(b"<html>", None, "give --model", id="no listing"),
        pytest.param(None, None, "give --model", id="no answer"),
    ],
)
def test_what_cannot_be_asked_for_is_said(listing: bytes | None, wanted: str | None, says: str) -> None:
    with pytest.raises(NoModel, match=says):
        served_model(listing, wanted, "--model")
