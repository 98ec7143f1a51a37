"""Real peers for mounts: a seed as a process of its own, and an end to every peer that a test started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhtdata.config import load_settings
from dhtdata.control.client import PeerClient
from dhtdata.control.protocol import PeerStatus
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.store import Store

_SEED = """
import json, sys
from dhtdata.config import load_settings
from dhtdata.formats.ticket import parse_target
from dhtdata.peer import run_seed
home, target, port = sys.argv[1:]
settings = load_settings({"home": home, "listen": "127.0.0.1", "port": int(port)}, environment={})
def told(seeded):
    print(json.dumps({"ticket": seeded.ticket}), flush=True)
run_seed(settings, [parse_target(target)], on_listening=lambda status: None, on_seeded=told)
"""


@contextmanager
def seed(home: Path, manifest: Digest, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A seed of the store under ``home``, on any port or this one: its ticket, and the process."""
    command = [sys.executable, "-c", _SEED, str(home), str(manifest), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told, f"the seed of {home} ended with {process.wait(10)} before it had a ticket"
            yield json.loads(told)["ticket"], process
        finally:
            process.kill()


@contextmanager
def peer_of(home: Path) -> Iterator[None]:
    """Stops the private peer of a store afterwards, if one was started."""
    try:
        yield
    finally:
        settings = load_settings({"home": home}, environment={})
        with Store.open(settings.store) as store:
            try:
                with PeerClient.connect(store, settings, start=False) as client:
                    client.stop()
            except NotFoundError:
                pass


def settled_status(home: Path, quiet_s: float = 0.5) -> PeerStatus:
    """Status of the private peer once it has fetched nothing for a while."""
    settings = load_settings({"home": home}, environment={})
    with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=False) as client:
        seen, since_s = client.status(), time.monotonic()
        while time.monotonic() - since_s < quiet_s:
            time.sleep(0.05)
            status = client.status()
            if status.bytes_fetched != seen.bytes_fetched:
                seen, since_s = status, time.monotonic()
        return seen
