"""Control: how programs on this machine talk to the peer of a store, over a Unix socket. Blocking; no event loop.

| module | part |
|---|---|
| ``protocol`` | the messages and their frames; shared with the peer |
| ``lock`` | files that one process at a time may hold |
| ``spawn`` | start the store's private peer, once, whoever asks |
| ``client`` | `PeerClient`: what mount, publish and the command line call |
"""

from __future__ import annotations

from dhtdata.control.client import PeerClient

__all__ = ["PeerClient"]
