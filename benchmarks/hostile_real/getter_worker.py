"""A program whose private peer fetches one dataset: ``python -m benchmarks.hostile_real.getter_worker FOLDER LISTEN``.

Says ``ready`` when the peer runs, reads a ticket, answers with one line of JSON when all is there. Ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.hostile_real.peers import settings_at, stop_peer
from dhtdata.control import PeerClient
from dhtdata.store import Store

SEARCH_S = 60.0


def main() -> None:
    settings = settings_at(Path(sys.argv[1]), sys.argv[2])
    with Store.open(settings.store) as store:
        with PeerClient.connect(store, settings, start=True) as client:
            client.status()
            print("ready", flush=True)
            ticket = sys.stdin.readline().strip()
            started_s = time.perf_counter()
            if ticket:
                found = client.resolve(ticket, SEARCH_S)
                resolved_s = time.perf_counter() - started_s
                client.fetch_dataset(found.manifest)
                took_s = time.perf_counter() - started_s
                print(json.dumps({"resolved_s": resolved_s, "seconds": took_s}), flush=True)
            sys.stdin.read()
        stop_peer(store, settings)


if __name__ == "__main__":
    main()
