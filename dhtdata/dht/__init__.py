"""The DHT: who has what, kept by everybody. Kademlia (Maymounkov and Mazières, 2002) with signed, multi-value records.

| file | idea |
|---|---|
| ``identity`` | who a node is: a key, and an identifier that cost work |
| ``envelope`` | the signed datagram |
| ``messages`` | requests and replies inside it; nothing untyped gets past |
| ``routing`` | who we know: buckets by distance, no I/O; a contact enters after *it* answered *us* |
| ``holdings``, ``quotas`` | what we keep for others: validated, bounded, fairly shared, expiring records |
| ``archive``, ``keeping`` | the same on disk |
| ``lookup`` | walking towards a target on disjoint paths without waiting for stragglers; the network is a function |
| ``region`` | where records that must not be taken over are kept |
| ``sweep``, ``schedule`` | which nodes should hold which of very many keys, and when each is announced again |
| ``search`` | what a search has found: verified, deduplicated, newest |
| ``size``, ``clock``, ``reachability`` | what answers tell: how many we are, whose clock is wrong, who reaches us |
| ``cookies``, ``rates`` | what is spent on strangers |
| ``round_trips`` | how long to wait for an answer |
| ``remembered``, ``statefile`` | contacts on disk, for the next start; how such files are written |
| ``endpoint`` | the UDP socket |
| ``protocol`` | requests and replies over datagrams |
| ``asking``, ``announcing`` | calls that teach the table; our records where they belong |
| ``overlay`` | one address family's part of a node, with its loops |
| ``status`` | what a node tells of itself |
| ``node`` | `DhtNode`: all of it together |

Use it on its own: `DhtNode.running` listens, `DhtNode.bootstrap` joins, `DhtNode.announce` and `DhtNode.find` put and
look up signed records (`dhtdata.formats.records`). ``kademlia`` and ``rpcudp`` enter here: routing, holdings, protocol.
"""

from __future__ import annotations

from dhtdata.dht.node import DhtNode
from dhtdata.dht.schedule import SweepSchedule
from dhtdata.dht.search import Found
from dhtdata.dht.status import KnownNode, NodeStatus, Trace

__all__ = ["DhtNode", "Found", "KnownNode", "NodeStatus", "SweepSchedule", "Trace"]
