"""Takes on what changes in the router's configuration file while it runs: the SLO classes and the default one.

The file is polled, because a ConfigMap volume is renewed by swapping a symlink that no watch follows for certain. One
that cannot be used is logged once and changes nothing. Invariant: requests under way keep the objective that they were
admitted with.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from paceline_api.config import LIVE_FIELDS, ConfigError, RouterConfig

from paceline_router.shell import Shell

_log = logging.getLogger(__name__)

POLL_S = 2.0  # wall


class ConfigFile:
    """One router's file."""

    def __init__(self, path: Path, shell: Shell) -> None:
        self._path = path
        self._shell = shell
        self._seen: bytes | None = None

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Adopts the file if it has changed since the last look and can be used."""
        try:
            raw = self._path.read_bytes()
            if raw == self._seen:
                return
            self._seen = raw
            config = RouterConfig.read(self._path)
        except OSError as e:
            if self._seen is not None:
                _log.warning("configuration unreadable file=%s error=%s", self._path, e)
            self._seen = None
        except ConfigError as e:
            _log.error("configuration refused, the earlier one stays: %s", e)
        else:
            self._adopt(config)

    def _adopt(self, config: RouterConfig) -> None:
        before = self._shell.config
        changed = [name for name in RouterConfig.model_fields if getattr(config, name) != getattr(before, name)]
        if any(name in LIVE_FIELDS for name in changed):
            self._shell.adopt(config)
            _log.info("objectives changed classes=%s", ",".join(self._shell.classes))
        if later := [name for name in changed if name not in LIVE_FIELDS]:
            _log.warning("configuration changed fields=%s, which take effect at the next start", ",".join(later))
