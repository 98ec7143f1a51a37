"""``python -P -m dhtdata.peer``: the private peer of a store. Started by `dhtdata.control.spawn`, not by people."""

from __future__ import annotations

import sys

from dhtdata.peer.starting import run_private

if __name__ == "__main__":
    sys.exit(run_private(sys.argv[1:]))
