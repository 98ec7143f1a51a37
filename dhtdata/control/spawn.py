"""Start the private peer of a store: at most one, whoever asks, however many ask at once.

Connect; take the election lock; connect again; spawn; wait on a pipe until the peer says that it answers, `START_S`
at most; release. Any rank of a training job may be the one. A forked worker never takes the lock itself (it could be
killed with it, or pass it on): the process it spawns takes it.

The peer is a session of its own with no standard input, ``-P`` (a ``random.py`` in the current folder must not be
imported) and its messages in ``peer.log`` of the store. It outlives whoever started it.
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar

from dhtdata.config import RATES, Settings, rate_text
from dhtdata.control import protocol
from dhtdata.control.lock import ELECTION_LOCK, FileLock
from dhtdata.errors import FormatError, NotFoundError, PeerError

START_S = 20.0
ELECTION_S = 2 * START_S
PEER_LOG = "peer.log"
_LOG_BYTES = 1 << 20

_T = TypeVar("_T")
_started: list[subprocess.Popen[bytes]] = []
_forked = False


def elect(settings: Settings, connect: Callable[[], _T]) -> _T:
    """What ``connect`` returns, once a peer runs; starts one if ``connect`` raises NotFoundError.

    PeerError if the peer does not come up, or the error that it reported.
    """
    _reap()
    try:
        return connect()
    except NotFoundError:
        pass
    if _forked:
        start_private(settings, elect_itself=True)
        return connect()
    with FileLock(settings.store / ELECTION_LOCK) as lock:
        if not lock.acquire(ELECTION_S):
            raise PeerError(
                f"somebody else has been starting the peer of {settings.store} for {ELECTION_S:.0f} s: "
                f"see {settings.store / PEER_LOG}"
            )
        try:
            return connect()
        except NotFoundError:
            start_private(settings, elect_itself=False)
            return connect()


def start_private(settings: Settings, *, elect_itself: bool) -> None:
    """Spawn the private peer and wait until it, or another one that was faster, answers."""
    ready, tell = os.pipe()
    try:
        with _open_log(settings.store / PEER_LOG) as log:
            child = subprocess.Popen(
                private_command(settings, tell, elect_itself=elect_itself),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(tell,),
                start_new_session=True,
                cwd="/",
            )
        os.close(tell)
        tell = -1
        _started.append(child)
        _wait_ready(ready, settings)
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)


def private_command(settings: Settings, ready: int, *, elect_itself: bool) -> list[str]:
    command = [sys.executable, "-P", "-m", "dhtdata.peer", "--store", str(settings.store.absolute())]
    command += ["--home", str(settings.home.absolute()), "--listen", settings.listen, "--ready-fd", str(ready)]
    if settings.cache_limit is not None:
        command += ["--cache-limit", str(settings.cache_limit)]
    if settings.bootstrap:
        command += ["--bootstrap", ",".join(map(str, settings.bootstrap))]
    if settings.network is not None:
        # The path alone: arguments can be read by everybody on the machine.
        command += ["--network", str(settings.network)]
    for name in RATES:
        command += [f"--{name.replace('_', '-')}", rate_text(getattr(settings, name))]
    for seed in settings.web_seeds:
        command += ["--web-seed", seed.url]
    command += ["--packed", settings.packed]
    if elect_itself:
        command.append("--elect")
    return command


def _open_log(path: Path) -> FileIO:
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        os.replace(path, path.with_suffix(".log.old"))
    return path.open("ab", buffering=0)


def _wait_ready(ready: int, settings: Settings) -> None:
    log = settings.store / PEER_LOG
    received = b""
    deadline_s = time.monotonic() + START_S
    while (remaining_s := deadline_s - time.monotonic()) > 0:
        if not select.select([ready], [], [], remaining_s)[0]:
            break
        piece = os.read(ready, 65_536)
        if not piece:
            _judge(received, settings)
            return
        received += piece
    raise PeerError(f"the peer of {settings.store} was not ready within {START_S:.0f} s: see {log}")


def _judge(received: bytes, settings: Settings) -> None:
    try:
        answer = protocol.unpack(received[protocol.HEADER_BYTES :])
    except FormatError:
        answer = None
    if isinstance(answer, protocol.Failure):
        raise protocol.to_error(answer)
    if not isinstance(answer, protocol.Done):
        raise PeerError(f"the peer of {settings.store} ended while it started: see {settings.store / PEER_LOG}")


def _reap() -> None:
    _started[:] = [child for child in _started if child.poll() is None]


def _let_live() -> None:
    # The peer is meant to outlive us: without a return code Popen would complain that it still runs.
    for child in _started:
        child.returncode = child.poll() or 0


def _note_fork() -> None:
    global _forked
    _forked = True
    for child in _started:
        child.returncode = 0
    _started.clear()


atexit.register(_let_live)
os.register_at_fork(after_in_child=_note_fork)
