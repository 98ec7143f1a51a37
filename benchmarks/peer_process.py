"""A peer as a process of its own: ``python -m benchmarks.peer_process seed|private FLAGS [TARGET...]``.

``FLAGS`` are settings as JSON. Runs what ``dhtdata seed`` and a mount's private peer run, in the same way; besides, a
seed may have no target yet, and the process dies with whoever started it. Says where it listens, then a line for each
target that it seeds.
"""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.mortal import die_with_parent, say
from dhtdata.config import Settings, load_settings
from dhtdata.control.protocol import PeerStatus, Seeded
from dhtdata.errors import DhtDataError
from dhtdata.formats.ticket import parse_target
from dhtdata.peer import run_seed
from dhtdata.peer.peer import Events, only_peer, run_peer
from dhtdata.store import Store


def main() -> int:
    die_with_parent()
    kind, flags, *targets = sys.argv[1:]
    settings = load_settings(json.loads(flags), environment={})
    try:
        if kind == "seed":
            run_seed(settings, [parse_target(text) for text in targets], on_listening=_listening, on_seeded=_seeded)
        else:
            _run_private(settings)
    except DhtDataError as failure:
        say(failure=f"{type(failure).__name__}: {failure}")
        return 1
    return 0


def _run_private(settings: Settings) -> None:
    with Store.open(settings.store, cache_limit=settings.cache_limit) as store:
        with only_peer(settings, store.id, seed=False, elect=True) as election:

            def listening(status: PeerStatus) -> None:
                election.release()
                _listening(status)

            asyncio.run(run_peer(settings, store, seed=False, targets=(), events=Events(on_listening=listening)))


def _listening(status: PeerStatus) -> None:
    say(addresses=list(status.addresses), pid=status.pid)


def _seeded(seeded: Seeded) -> None:
    say(ticket=seeded.ticket, manifest=seeded.manifest.hex(), contents=seeded.contents.hex())


if __name__ == "__main__":
    sys.exit(main())
