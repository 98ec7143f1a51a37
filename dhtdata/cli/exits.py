"""Exit codes: one table, shown by ``dhtdata --help`` and the README.

| exit code | class | meaning |
|---|---|---|
| 0 | | done |
| 1 | | a defect of dhtdata itself; the only case that prints a traceback |
| 2 | ConfigError | an option, a file or a name must be changed |
| 3 | FormatError | bytes from outside are malformed, or of a newer version |
| 4 | IntegrityError | a digest or signature does not match |
| 5 | NotFoundError | nobody who was asked has it |
| 6 | PeerError | a remote peer failed or refused |
| 7 | StoreError | the local disk is full, locked, unreadable or of a kind that cannot hold a store |
| 130 | | interrupted |
| 141 | | whoever read our output went away |
"""

from __future__ import annotations

from dhtdata.errors import (
    ConfigError,
    DhtDataError,
    FormatError,
    IntegrityError,
    NotFoundError,
    PeerError,
    StoreError,
)

OK = 0
DEFECT = 1
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
CODES: dict[type[DhtDataError], int] = {
    ConfigError: USAGE,
    FormatError: 3,
    IntegrityError: 4,
    NotFoundError: 5,
    PeerError: 6,
    StoreError: 7,
}


def code_of(failure: DhtDataError) -> int:
    """Exit code of an expected failure; `DEFECT` for a bare DhtDataError, which nothing should raise."""
    return next((code for kind, code in CODES.items() if isinstance(failure, kind)), DEFECT)
