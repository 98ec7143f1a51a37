"""The DHT: who has what, kept by everybody. Kademlia (Maymounkov and Mazières, 2002) with signed, multi-value records.

| file | idea |
|---|---|
| ``routing`` | who we know: buckets by distance, no I/O; a contact enters after *it* answered *us* |
| ``messages`` | the four requests and their replies as bytes; nothing untyped gets past it |
| ``holdings`` | what we keep for others: validated, bounded, expiring records |
| ``search`` | what a search has found: verified, deduplicated, newest |
| ``lookup`` | walking towards a key without waiting for stragglers; the network is a function |
| ``sweep`` | which nodes should hold which of very many keys, with one exploration per region |
| ``remembered`` | contacts on disk, for the next start |
| ``endpoint`` | the UDP socket |
| ``protocol`` | requests and replies over datagrams |
| ``asking`` | calls that teach the table, walks over the network, searches |
| ``announcing`` | our records on the nodes nearest to their keys |
| ``node`` | `DhtNode`: all of it together, with its loops |

Modules import only those above them. ``kademlia`` and ``rpcudp`` enter here: routing, holdings, protocol, node.
"""

from __future__ import annotations

from dhtdata.dht.node import DhtNode, KnownNode, NodeStatus
from dhtdata.dht.search import Found

__all__ = ["DhtNode", "Found", "KnownNode", "NodeStatus"]
