"""Discovery: which replicas EndpointSlices name."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from factories_members import make_endpoint, make_slice
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.endpoints import Member, changed, listed, members
from paceline_router.facts import Role
from paceline_router.replica import Size

Json = dict[str, Any]
SIZE = Size(100, 50)


def names(*slices: Json) -> list[str]:
    return [member.name for member in members(listed(slices))]


def test_a_member_bears_what_the_labels_and_the_endpoint_say() -> None:
    slice_ = make_slice("s", make_endpoint("p-1", "198.18.0.7"), role="prefill", pool="fast", gpus="4")
    assert members(listed([slice_])) == (Member("uid-p-1", "p-1", "198.18.0.7", 8000, Role.PREFILL, "fast", "a", 4),)


@pytest.mark.parametrize(
    ("says", "slices", "expected"),
    [
        ("a ready endpoint is a member", [make_slice("s", make_endpoint("a"))], ["a"]),
        ("an unready one is none", [make_slice("s", make_endpoint("a", ready=False))], []),
        ("a terminating one is none, even while ready", [make_slice("s", make_endpoint("a", terminating=True))], []),
        (
            "conditions that are not given hold",
            [make_slice("s", {"addresses": ["198.18.0.1"], "targetRef": {"name": "a", "uid": "u"}})],
            ["a"],
        ),
        ("without a target the address is its name", [make_slice("s", {"addresses": ["198.18.0.1"]})], ["198.18.0.1"]),
        ("an endpoint without an address is none", [make_slice("s", {"addresses": []})], []),
        ("a slice without endpoints has none", [{**make_slice("s"), "endpoints": None}], []),
        ("a role that there is not names nobody", [make_slice("s", make_endpoint("a"), role="chef")], []),
        ("a slice of host names names nobody", [make_slice("s", make_endpoint("a"), family="FQDN")], []),
        ("a slice without labels names nobody", [{"metadata": {"name": "s"}, "addressType": "IPv4"}], []),
        (
            "a pod in two slices is one member",
            [make_slice("s", make_endpoint("a")), make_slice("t", make_endpoint("a"), make_endpoint("b"))],
            ["a", "b"],
        ),
        (
            "ready in one of two slices is ready",
            [make_slice("s", make_endpoint("a", ready=False)), make_slice("t", make_endpoint("a"))],
            ["a"],
        ),
        (
            "terminating in one of two slices is terminating",
            [make_slice("s", make_endpoint("a", terminating=True)), make_slice("t", make_endpoint("a"))],
            [],
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_is_a_member(says: str, slices: list[Json], expected: list[str]) -> None:
    assert names(*slices) == expected


def test_of_two_families_ipv4_is_taken_and_ipv6_where_it_is_alone() -> None:
    six, four = make_endpoint("a", "fd00::1"), make_endpoint("a", "198.18.0.1")
    both = listed([make_slice("s", six, family="IPv6"), make_slice("t", four)])
    assert [m.host for m in members(both)] == ["198.18.0.1"]
    assert [m.host for m in members(changed(both, True, make_slice("t")))] == ["fd00::1"]


def test_without_a_named_port_the_first_is_taken_and_without_any_the_default() -> None:
    slice_ = make_slice("s", make_endpoint("a"))
    ports = [members(listed([{**slice_, "ports": ports}]))[0].port for ports in ([{"port": 81}, {"port": 82}], None)]
    assert ports == [81, 8000]


SLICES = st.builds(
    lambda name, pods: make_slice(name, *(make_endpoint(p, **c) for p, c in pods)),
    st.sampled_from(["s", "t", "u"]),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.fixed_dictionaries({"ready": st.booleans(), "terminating": st.booleans()})
        ),
        max_size=4,
        unique_by=lambda pod: pod[0],
    ),
)


@given(st.lists(st.tuples(st.booleans(), SLICES), max_size=12), st.randoms(use_true_random=False))
def test_changes_one_by_one_and_a_relist_in_any_order_agree(events: list[tuple[bool, Json]], rng: Random) -> None:
    slices, last = listed([]), dict[str, Json]()
    for deleted, slice_ in events:
        slices = changed(slices, deleted, slice_)
        last.pop(slice_["metadata"]["name"], None)
        if not deleted:
            last[slice_["metadata"]["name"]] = slice_
    anew = list(last.values())
    rng.shuffle(anew)
    found = members(slices)
    assert found == members(listed(anew))
    assert len({m.name for m in found}) == len({m.uid for m in found}) == len(found)
