"""Durations as people say them."""

from __future__ import annotations


def spoken(seconds: float) -> str:
    """``45 s``, ``12 min``, ``24 h``, ``9 days``: two or three digits of one unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"


def trip(seconds: float) -> str:
    """How long a call took: ``0.4 ms``, ``87 ms``, ``2.3 s``."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def apart(ahead_s: float) -> str:
    """Where one clock is, seen from another: ``24 h ahead of``, ``15 min behind``."""
    return f"{spoken(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'}"
