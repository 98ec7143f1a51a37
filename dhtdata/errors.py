"""Every error that dhtdata raises; the class tells the caller what to do.

::

    DhtDataError
    ├─ FormatError     outside bytes malformed, oversized, unknown version → reject
    ├─ IntegrityError  digest or signature wrong; carries .culprit         → blame
    ├─ NotFoundError   nobody reachable has it                             → wait, ask elsewhere
    ├─ PeerError       one remote failed; handled inside transfer and dht  → try another
    ├─ StoreError      local disk full, locked, unreadable                 → operator
    └─ ConfigError     user must change an input                           → usage

Messages name the object, the culprit and the next step. Foreign exceptions are translated once, at the
door through which their package enters.
"""

from __future__ import annotations


class DhtDataError(Exception):
    """Base of all errors of this package."""


class FormatError(DhtDataError):
    """Bytes from outside are malformed, oversized or of an unknown version: reject them."""


class IntegrityError(DhtDataError):
    """A digest or a signature does not match: somebody lied, or something broke.

    ``culprit`` names who delivered the bytes (a URL, an address, a path), or is empty when nobody can be blamed.
    """

    def __init__(self, message: str, culprit: str = "") -> None:
        super().__init__(message)
        self.culprit = culprit


class NotFoundError(DhtDataError):
    """Nobody who was asked has the object. The message says who was asked and what to do."""


class PeerError(DhtDataError):
    """One remote peer failed or refused; another may do better."""


class StoreError(DhtDataError):
    """The local disk is full, locked, unreadable or of a kind that cannot hold a store."""


class ConfigError(DhtDataError):
    """The user must change an input: an option, a file, a name."""
