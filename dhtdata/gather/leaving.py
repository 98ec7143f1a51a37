"""Rows that are left out because something failed on them: told in the log, and not without end."""

from __future__ import annotations

import logging
from dataclasses import dataclass

TOLD = 10
_log = logging.getLogger("dhtdata")


@dataclass
class Leaving:
    """Of one mount, in each process: the first few are told one by one, then every doubling."""

    count: int = 0

    def tell(self, why: str) -> None:
        """A row, or batch, is left out, for this reason."""
        self.count += 1
        if self.count <= TOLD:
            _log.warning("%s: left out", why)
        elif self.count & (self.count - 1) == 0:
            _log.warning("%s: left out, the %dth so far; not every one is told", why, self.count)
