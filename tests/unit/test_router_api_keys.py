"""Whose key a request carries, and what a folder of keys makes of what is written into it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.config import ConfigError
from paceline_router.admission import tenant
from paceline_router.api_keys import APIKeys
from paceline_router.key_ring import LONGEST_KEY, KeyRing, make_ring

RING, _ = make_ring({"acme": b"sk-acme", "zeta": b"sk-zeta\n"})
SENT = [
    ("a key", b"Bearer sk-acme", "acme"),
    ("a key that was written with a line end", b"Bearer sk-zeta", "zeta"),
    ("the scheme in small letters", b"bearer sk-acme", "acme"),
    ("no header", None, None),
    ("nothing in it", b"", None),
    ("no key", b"Bearer ", None),
    ("the key alone", b"sk-acme", None),
    ("another scheme", b"Basic sk-acme", None),
    ("an unknown key", b"Bearer sk-acm", None),
    ("a key and more", b"Bearer sk-acme2", None),
    ("two keys", b"Bearer sk-acme sk-zeta", None),
    ("the owner's name", b"Bearer acme", None),
    ("an endless key", b"Bearer " + b"x" * (LONGEST_KEY + 1), None),
]


@pytest.mark.parametrize(("sent", "owner"), [c[1:] for c in SENT], ids=[c[0] for c in SENT])
def test_whose_key_it_is(sent: bytes | None, owner: str | None) -> None:
    assert RING.owner_of(sent) == owner


def test_a_ring_without_keys_admits_nobody() -> None:
    assert KeyRing().owner_of(b"Bearer sk-acme") is None


def test_no_key_is_kept() -> None:
    assert "sk-" not in repr(RING)


@given(keys=st.dictionaries(st.text(min_size=1), st.binary(min_size=1, max_size=40)), sent=st.binary(max_size=40))
def test_a_request_is_admitted_with_a_written_key_and_with_no_other(keys: dict[str, bytes], sent: bytes) -> None:
    owner = make_ring(keys)[0].owner_of(b"Bearer " + sent)
    assert (owner is None) or keys[owner].strip() == sent.strip()


@given(keys=st.dictionaries(st.text(min_size=1), st.binary(max_size=40)))
def test_each_entry_is_a_key_or_a_problem(keys: dict[str, bytes]) -> None:
    ring, problems = make_ring(keys)
    assert len(ring) + len(problems) == len(keys)
    assert all(ring.owner_of(b"Bearer " + keys[owner].strip()) == owner for _, owner in ring.keys)


PROBLEMS = [
    ("empty", b" \n", "a: is empty; write a key into it"),
    ("a blank within", b"sk one", f"a: cannot be sent; write at most {LONGEST_KEY} visible ASCII characters"),
    ("too long", b"x" * (LONGEST_KEY + 1), f"a: cannot be sent; write at most {LONGEST_KEY} visible ASCII characters"),
]


@pytest.mark.parametrize(("written", "problem"), [c[1:] for c in PROBLEMS], ids=[c[0] for c in PROBLEMS])
def test_what_cannot_be_a_key(written: bytes, problem: str) -> None:
    assert make_ring({"a": written}) == (KeyRing(), (problem,))


def test_a_key_has_one_owner() -> None:
    ring, problems = make_ring({"b": b"sk", "a": b"sk"})
    assert ring.owner_of(b"Bearer sk") == "a"
    assert problems == ("b: is the key of a too; give each its own",)


@pytest.mark.parametrize("team", [None, b"team", b"zeta"])
@pytest.mark.parametrize("gateway", [None, b"gw"])
def test_the_tenant_is_the_keys_owner_whatever_headers_say(team: bytes | None, gateway: bytes | None) -> None:
    assert tenant("acme", team, gateway, b"Bearer k") == "acme"


def mount(folder: Path, version: str, **keys: str) -> None:
    """As a kubelet renews a Secret: a new folder, then one link swapped."""
    (folder / version).mkdir(parents=True)
    for name, key in keys.items():
        (folder / version / name).write_text(key)
    os.symlink(version, folder / "..data_tmp")
    os.replace(folder / "..data_tmp", folder / "..data")
    for path in folder.iterdir():
        if path.name not in keys and not path.name.startswith(".."):
            path.unlink()
    for name in keys:
        if not (folder / name).is_symlink():
            os.symlink(f"..data/{name}", folder / name)


def test_a_renewed_secret_is_taken_on(tmp_path: Path) -> None:
    mount(tmp_path, "..1", acme="one")
    keys = APIKeys(tmp_path)
    assert keys.owner_of(b"Bearer one") == "acme"
    mount(tmp_path, "..2", acme="two", zeta="three")
    asyncio.run(keys.look())
    assert [keys.owner_of(b"Bearer " + key) for key in (b"one", b"two", b"three")] == [None, "acme", "zeta"]
    mount(tmp_path, "..3")
    asyncio.run(keys.look())
    assert keys.owner_of(b"Bearer two") is None, "what is no longer there is no key"


def test_a_folder_that_cannot_be_read_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "keys"
    mount(folder, "..1", acme="one")
    keys = APIKeys(folder)
    folder.rename(tmp_path / "away")
    for _ in range(3):
        asyncio.run(keys.look())
    assert keys.owner_of(b"Bearer one") == "acme"
    assert caplog.text.count("the earlier ones stay") == 1


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ({}, "there is no API key"),
        ({"a": ""}, "there is no API key"),
    ],
    ids=["no folder", "no entry", "no usable entry"],
)
def test_without_a_key_at_the_start_there_is_no_router(
    tmp_path: Path, entries: dict[str, str] | None, says: str
) -> None:
    folder = tmp_path / "keys"
    if entries is not None:
        mount(folder, "..1", **entries)
    with pytest.raises(ConfigError, match=says):
        APIKeys(folder)
