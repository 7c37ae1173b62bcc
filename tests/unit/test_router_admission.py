"""Which objective a request gets from its headers."""

from __future__ import annotations

import pytest
from paceline_api.slo import SLOClass
from paceline_router.admission import Admitted, admit
from paceline_router.request import Rejected

INTERACTIVE = SLOClass("interactive", 0.4, 0.04)
BATCH = SLOClass("batch", 30.0, 0.25)
CLASSES = {"interactive": INTERACTIVE, "batch": BATCH}

ADMITTED = [
    ("the default class without a header", (None, None, None), Admitted(INTERACTIVE)),
    ("the named class", ("batch", None, None), Admitted(BATCH)),
    ("a tighter TTFT", (None, "250", None), Admitted(INTERACTIVE, INTERACTIVE.tightened(0.25, None))),
    ("a tighter TPOT", (None, None, "20.5"), Admitted(INTERACTIVE, INTERACTIVE.tightened(None, 0.0205))),
    ("a looser limit changes nothing", (None, "9000", "900"), Admitted(INTERACTIVE)),
    ("an equal limit changes nothing", (None, "400", "40"), Admitted(INTERACTIVE)),
]


@pytest.mark.parametrize(("headers", "admitted"), [c[1:] for c in ADMITTED], ids=[c[0] for c in ADMITTED])
def test_admitted(headers: tuple[str | None, str | None, str | None], admitted: Admitted) -> None:
    assert admit(*headers, CLASSES, "interactive") == admitted


GARBAGE = ["", "0", "-5", "nan", "inf", "1e3", "1_000", " 5", "0x10", "86400001", "9" * 40, "٥", "5ms"]


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("header", [1, 2], ids=["ttft", "tpot"])
def test_a_limit_that_is_none_is_refused(value: str, header: int) -> None:
    headers: list[str | None] = [None, None, None]
    headers[header] = value
    refused = admit(headers[0], headers[1], headers[2], CLASSES, "interactive")
    assert isinstance(refused, Rejected)
    assert refused.param == ("x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms")[header - 1]


def test_an_unknown_class_is_refused_with_the_names_that_exist() -> None:
    refused = admit("gold", None, None, CLASSES, "interactive")
    assert isinstance(refused, Rejected)
    assert "interactive, batch" in refused.message


def test_what_the_engines_hold_is_the_tightened_objective() -> None:
    admitted = admit("batch", "100", None, CLASSES, "interactive")
    assert isinstance(admitted, Admitted)
    assert admitted.effective.ttft_s == 0.1
    assert admitted.slo == BATCH
