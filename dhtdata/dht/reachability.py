"""Whether strangers reach us: only who can be reached may stand in the tables of others.

A node behind an address translator sends, and gets answers from whom it wrote to, but nobody else's datagrams arrive.
In tables such nodes are dead ends: they are why look-ups of other networks time out. So a node is a *client* until a
request arrives from an address that it has not called for 5 minutes (a translator lets answers through for up to that
long, RFC 4787), and not from a nearer network than its contacts are in: neighbours behind the same translator reach it
past that. A node that joins does not wait for chance: it asks those it knows to *introduce* it, and each asks four
of its own contacts to call it. Nodes of the first minutes of a network know nobody else to ask: if nobody who was asked
knows another node, or a node has called all the few that there are, it presumes that it can be reached.

The proof is renewed by ordinary traffic, knocks included. When there was none for half an hour, introductions are asked
for again, and if nobody comes, twice, the node becomes a client. Introductions get lost, so a newcomer asks again soon,
and then less and less often.
"""

from __future__ import annotations

import asyncio

PROOF_S = 30 * 60.0
PROBE_S = 3.0
LATELY_S = 60.0
PROBE_EVERY_S = 5 * 60.0
PROBE_SOON_S = 45.0
INTRODUCERS = 3
MET_BY = 4


class Reachability:
    """What we know about it, on one socket. Times are of a clock that never goes back."""

    def __init__(self) -> None:
        self.reached = False
        self.told = asyncio.Event()
        self._proven_s = -PROOF_S
        self._probed_s = -PROBE_EVERY_S
        self._wait_s = PROBE_SOON_S
        self._in_vain = False

    def proven(self, now_s: float) -> None:
        """A stranger's request arrived, or nobody is there who could send one."""
        self.reached = True
        self._proven_s = now_s
        self._wait_s = PROBE_SOON_S
        self._in_vain = False
        self.told.set()

    def proven_lately(self, now_s: float) -> bool:
        """Whether another proof now would say nothing new."""
        return self.reached and now_s - self._proven_s < LATELY_S

    def probing(self, now_s: float) -> None:
        self._probed_s = now_s
        self.told.clear()

    def unproven(self) -> None:
        """Introductions were asked for, and nobody came: once that may be chance, whom we called lately cannot come."""
        if self._in_vain:
            self.reached = False
        self._in_vain = True
        self._wait_s = PROBE_EVERY_S if self.reached else min(2 * self._wait_s, PROBE_EVERY_S)

    def doubt(self) -> None:
        """What was taken for a proof is none any more: ask for introductions as if there had been none."""
        self.reached = False
        self._in_vain = True
        self._proven_s = -PROOF_S
        self._probed_s = -PROBE_EVERY_S

    def due(self, now_s: float) -> bool:
        """Whether introductions should be asked for: no proof for long, or never any, and not asked just now."""
        return now_s - self._proven_s >= PROOF_S and (self._probed_s < 0 or now_s - self._probed_s >= self._wait_s)
