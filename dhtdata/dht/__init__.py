"""The DHT: who has what, kept by everybody. Kademlia (Maymounkov and Mazières, 2002) with signed, multi-value records.

| file | idea |
|---|---|
| ``routing`` | who we know: buckets by distance, no I/O; a contact enters after *it* answered *us* |
| ``messages`` | the four requests and their replies as bytes; nothing untyped gets past it |
| ``holdings`` | what we keep for others: validated, bounded, expiring records |
| ``lookup`` | walking towards a key without waiting for stragglers; the network is a function |
| ``sweep`` | which nodes should hold which of very many keys, with one exploration per region |
| ``protocol`` | requests and replies over datagrams (door of ``kademlia`` and ``rpcudp``) |
| ``endpoint`` | the UDP socket |
| ``remembered`` | contacts on disk, for the next start |
| ``node`` | `DhtNode`: all of it together, with its loops |
"""

from __future__ import annotations

from dhtdata.dht.node import DhtNode, Found, KnownNode, NodeStatus

__all__ = ["DhtNode", "Found", "KnownNode", "NodeStatus"]
