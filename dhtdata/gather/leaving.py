"""Rows that are left out because something failed on them: told in the log, and not without end."""

from __future__ import annotations

import logging
from collections import Counter

TOLD = 10
_log = logging.getLogger("dhtdata")
_counts: Counter[str] = Counter()


def leave_out(told: str, place: str) -> None:
    """Log why a row (or batch) of ``place`` is left out: the first few of each process, then every doubling."""
    _counts[place] += 1
    count = _counts[place]
    if count <= TOLD:
        _log.warning("%s: left out", told)
    elif count & (count - 1) == 0:
        _log.warning("%s: left out, as %d of %s so far; not every one is told", told, count, place)
