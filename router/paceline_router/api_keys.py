"""The API keys of a service, from a folder with a file for each: its text is the key, its name the owner's.

A kubelet mounts a Secret so, and renews all of it by swapping one link; the folder is polled, as the configuration is.
Invariants: a router that wants keys never runs without one at its start; a folder that cannot be read later changes
nothing, one that has lost its keys admits nobody.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from paceline_api.config import ConfigError

from paceline_router.key_ring import LONGEST_KEY, KeyRing, make_ring

_log = logging.getLogger(__name__)

POLL_S = 2.0  # wall
MOST_KEYS = 10_000  # files that are looked at


class APIKeys:
    """Of one folder. ConfigError when there is no key in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readable = True
        try:
            self._seen = _read(folder)
        except OSError as e:
            raise ConfigError(f"{folder}: API keys cannot be read: {e.strerror}; mount the Secret there") from e
        self.ring = self._tell(self._seen)
        if not self.ring:
            raise ConfigError(f"{folder}: there is no API key; add one to the Secret, or to the folder as a file")

    def owner_of(self, authorization: bytes | None) -> str | None:
        """As `KeyRing.owner_of`, with the keys of now."""
        return self.ring.owner_of(authorization)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def look(self) -> None:
        """Takes on what has changed since the last look."""
        try:
            found = await asyncio.to_thread(_read, self._folder)
        except OSError as e:
            if self._readable:  # not at every look
                _log.warning("API keys unreadable, the earlier ones stay folder=%s error=%s", self._folder, e)
            self._readable = False
            return
        self._readable = True
        if found != self._seen:
            self._seen = found
            self.ring = self._tell(found)

    def _tell(self, entries: dict[str, bytes]) -> KeyRing:
        ring, problems = make_ring(entries)
        for problem in problems:
            _log.warning("API key refused %s/%s", self._folder, problem)
        _log.info("API keys read folder=%s keys=%d", self._folder, len(ring))
        return ring


def _read(folder: Path) -> dict[str, bytes]:
    """Name → first bytes of each file, enough to see a key that is too long. What begins with `..` is the kubelet's."""
    found = {}
    for path in sorted(folder.iterdir())[:MOST_KEYS]:
        if not path.name.startswith("..") and path.is_file():
            with path.open("rb") as file:
                found[path.name] = file.read(2 * LONGEST_KEY)
    return found
