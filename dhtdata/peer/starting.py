"""Start a peer: in the foreground as a seed, or as a program's private child (``python -P -m dhtdata.peer``)."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Sequence

from dhtdata.config import RATES, Settings, load_settings
from dhtdata.control import protocol
from dhtdata.control.protocol import PeerStatus, Seeded
from dhtdata.errors import DhtDataError
from dhtdata.formats.ticket import Target
from dhtdata.peer.peer import AlreadyRunning, Events, only_peer, run_peer
from dhtdata.store import Store

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


def run_seed(
    settings: Settings,
    targets: Sequence[Target],
    *,
    on_listening: Callable[[PeerStatus], None],
    on_seeded: Callable[[Seeded], None],
) -> None:
    """Run a seed in this process until SIGTERM, SIGINT or a stop; takes the place of a private peer.

    ``on_listening`` is called once, ``on_seeded`` once per target, in order. `AlreadyRunning` if a seed of this store
    runs, ConfigError if the port is in use; NotFoundError and others if a target cannot be found.
    """
    _return_memory()
    with Store.open(settings.store, cache_limit=settings.cache_limit) as store:
        with only_peer(settings, store.id, seed=True, elect=True) as election:

            def listening(status: PeerStatus) -> None:
                election.release()
                on_listening(status)

            events = Events(on_listening=listening, on_seeded=on_seeded)
            asyncio.run(run_peer(settings, store, seed=True, targets=targets, events=events))


def run_private(arguments: Sequence[str]) -> int:
    """The private peer of a store; tells the ready pipe how the start went. Exit code."""
    options = _parse(arguments)
    _leave_parent()
    _return_memory()
    settings = load_settings(
        {
            "store": options.store,
            "home": options.home,
            "listen": options.listen,
            "cache_limit": options.cache_limit,
            "bootstrap": options.bootstrap,
            "network": options.network,
            **{name: getattr(options, name) for name in RATES},
            "web_seeds": options.web_seed,
            "packed": options.packed,
        },
        environment={},
    )
    ready = _Ready(options.ready_fd)
    try:
        with Store.open(settings.store, cache_limit=settings.cache_limit) as store:
            with only_peer(settings, store.id, seed=False, elect=options.elect) as election:

                def listening(_: PeerStatus) -> None:
                    election.release()
                    ready.tell(protocol.Done())

                asyncio.run(run_peer(settings, store, seed=False, targets=(), events=Events(on_listening=listening)))
    except AlreadyRunning:
        ready.tell(protocol.Done())
    except DhtDataError as failure:
        ready.tell(protocol.to_failure(failure))
        sys.stderr.write(f"dhtdata peer: {failure}\n")
        return 1
    return 0


def _return_memory() -> None:
    """Have the allocator give back what is free, in a process that runs for weeks with many threads.

    glibc has an arena for most threads and, once a large piece was given back, maps no such piece any more and keeps
    twice as much of every arena (mallopt(3), M_MMAP_THRESHOLD): 0.1 MiB more every time that 100 shards came and went.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library, with habits of its own
    mallopt(_M_ARENA_MAX, 2)
    mallopt(_M_MMAP_THRESHOLD, 128 << 10)


class _Ready:
    """The pipe on which whoever started us waits."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def tell(self, answer: protocol.Answer) -> None:
        """Once; later calls do nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.write(descriptor, protocol.pack(answer))
            except BrokenPipeError:
                # Whoever started us did not wait; others may use this peer.
                return
            finally:
                os.close(descriptor)


def _leave_parent() -> None:
    """Do not stay where a program started us: a training rank may be bound to one core, the peer is for all."""
    os.chdir("/")
    if hasattr(os, "sched_setaffinity"):
        # The kernel cuts this down to what the control group allows.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dhtdata.peer", description="Private peer of a store, started by a program.")
    parser.add_argument("--store", required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--cache-limit")
    parser.add_argument("--bootstrap")
    parser.add_argument("--network")
    for name in RATES:
        parser.add_argument(f"--{name.replace('_', '-')}")
    parser.add_argument("--web-seed", action="append")
    parser.add_argument("--packed")
    parser.add_argument("--elect", action="store_true")
    return parser.parse_args(arguments)
