"""The peer: the one program of a store that talks to the network.

| module | part |
|---|---|
| ``addresses`` | our addresses and ports; whose word about addresses counts |
| ``known`` | peers named by the user or remembered |
| ``finder`` | who might have it: DHT, known peers, the DHT through a peer |
| ``swarms`` | one swarm per dataset |
| ``resolve`` | from a ticket, name or digest to a version |
| ``collect`` | fetch a whole dataset in the background |
| ``announcer`` | claims in the DHT, renewed |
| ``seeder`` | datasets that a seed keeps |
| ``control_server`` | the peer's end of the control socket |
| ``desk`` | what is done for each request |
| ``dht_desk`` | the same about the DHT: standing, look-ups hop by hop, pings |
| ``peer`` | all of it in one task group; one peer per store |
| ``starting`` | in the foreground as a seed, or as a program's private child |
"""

from __future__ import annotations

from dhtdata.peer.peer import AlreadyRunning
from dhtdata.peer.starting import run_private, run_seed

__all__ = ["AlreadyRunning", "run_private", "run_seed"]
