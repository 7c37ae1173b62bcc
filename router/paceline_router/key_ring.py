"""Whose API key a request carries. Pure.

A key is held and compared as its SHA-256, so neither its length nor how much of it fits shows in the time that a
comparison takes, and every comparison is with all keys. Invariants: a ring without keys admits nobody; an owner's name
never comes from the request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

LONGEST_KEY = 1024  # bytes
_KEY = re.compile(rb"[!-~]{1,%d}" % LONGEST_KEY)
_BEARER = re.compile(rb"(?i:bearer) +([!-~]{1,%d})" % LONGEST_KEY)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one service: the hash of each and its owner's name."""

    keys: tuple[tuple[bytes, str], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def owner_of(self, authorization: bytes | None) -> str | None:
        """Of the key in `Authorization: Bearer KEY`; None: there is none, or it is nobody's."""
        sent = _BEARER.fullmatch(authorization or b"")
        if sent is None:
            return None
        hashed = sha256(sent[1]).digest()
        owner = None
        for known, name in self.keys:
            if compare_digest(known, hashed):
                owner = name
        return owner


def make_ring(entries: Mapping[str, bytes]) -> tuple[KeyRing, tuple[str, ...]]:
    """The ring of `entries`, owner → key as it was written, and what of them cannot be a key. Blanks around it go."""
    owners: dict[bytes, str] = {}
    problems = []
    for owner, written in sorted(entries.items()):
        key = written.strip()
        hashed = sha256(key).digest()
        if not key:
            problems.append(f"{owner}: is empty; write a key into it")
        elif not _KEY.fullmatch(key):
            problems.append(f"{owner}: cannot be sent; write at most {LONGEST_KEY} visible ASCII characters")
        elif hashed in owners:
            problems.append(f"{owner}: is the key of {owners[hashed]} too; give each its own")
        else:
            owners[hashed] = owner
    return KeyRing(tuple(owners.items())), tuple(problems)
