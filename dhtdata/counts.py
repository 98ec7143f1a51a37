"""Numbers of things as people say them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """``1 peer``, ``1,234 peers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
