"""A whole swarm: links, churn, the lower bound, and what came of it.

**Lower bound**: max(F/us, F/dmin, N*F/(us + sum ui)) for the N places of the swarm, as if everybody were there from the
beginning and nobody ever left. Churn does not soften it: what those who left for good had fetched, what their
successors fetch again and the time in which nobody sat in a place all count against the swarm. One thing is added,
since nobody can be faster: a successor's own F/d after it came. Times are until the last of the N is done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.swarm_simulated.engine import Engine, Link
from benchmarks.swarm_simulated.peers import Dataset, Peer

MBIT = 125_000.0


@dataclass(frozen=True)
class Kind:
    """A kind of access: Mbit/s up (0: cannot be reached, as behind a NAT) and down; ``share`` of all peers."""

    share: float
    up: float
    down: float


HOMES = (
    Kind(0.20, 0, 50),
    Kind(0.25, 10, 50),
    Kind(0.25, 20, 100),
    Kind(0.20, 50, 250),
    Kind(0.10, 100, 500),
)


@dataclass(frozen=True)
class Setup:
    """``gone``: share of the peers that leave for good and are replaced; ``restarts``: share that is away for a while.

    ``seed_up``: Mbit/s of the one seed, which stays. Everybody knows it, and ``neighbours`` others.
    """

    peers: int
    dataset: Dataset
    kinds: tuple[Kind, ...] = HOMES
    seed_up: float = 100.0
    neighbours: int = 40
    gone: float = 0.0
    restarts: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Times in s. ``copies``: what the seed sent over what the dataset has. ``wasted``: share of all bytes received."""

    done_s: tuple[float, ...]
    bound_s: float
    terms_s: tuple[float, float, float]
    copies: float
    wasted: float
    left: int
    events: int

    @property
    def ratio(self) -> float:
        return max(self.done_s) / self.bound_s


class Swarm:
    """Everything in it follows from the setup and the number that randomness is seeded with."""

    def __init__(self, setup: Setup, seed: int) -> None:
        self._setup = setup
        self._engine = Engine()
        self._chance = random.Random(seed)
        self._numbers = 0
        self._left: list[Peer] = []
        self._root = self._peer(Link(setup.seed_up * MBIT, setup.seed_up * MBIT))
        self._root.become_seed()
        kinds = [kind for kind in setup.kinds for _ in range(round(kind.share * setup.peers))]
        self._chance.shuffle(kinds)
        self._peers = [self._peer(Link(kind.up * MBIT, kind.down * MBIT)) for kind in kinds]
        self._reachable = [peer for peer in self._peers if peer.reachable]

    def run(self) -> Outcome:
        terms_s = self._terms_s()
        bound_s = max(terms_s)
        for peer in self._peers:
            peer.join(self._neighbours(peer), self._reachable)
        self._churn(bound_s)
        self._engine.run(lambda: all(peer.complete for peer in self._peers), 20 * bound_s)
        unfinished = sum(not peer.complete for peer in self._peers)
        if unfinished:
            raise RuntimeError(
                f"{unfinished} of {len(self._peers)} peers are not done after {self._engine.now_s:.0f} s"
            )
        everybody = [*self._peers, *self._left]
        latest_s = max(peer.joined_s + self._setup.dataset.bytes / peer.link.down_bytes_s for peer in self._peers)
        return Outcome(
            done_s=tuple(peer.done_s for peer in self._peers),
            bound_s=max(bound_s, latest_s),
            terms_s=terms_s,
            copies=self._root.link.sent_bytes / self._setup.dataset.bytes,
            wasted=sum(peer.wasted_bytes for peer in everybody) / sum(peer.received_bytes for peer in everybody),
            left=len(self._left),
            events=self._engine.events,
        )

    def _terms_s(self) -> tuple[float, float, float]:
        size = self._setup.dataset.bytes
        up = self._root.link.up_bytes_s
        slowest = min(peer.link.down_bytes_s for peer in self._peers)
        together = up + sum(peer.link.up_bytes_s for peer in self._peers)
        return size / up, size / slowest, len(self._peers) * size / together

    def _peer(self, link: Link) -> Peer:
        self._numbers += 1
        return Peer(self._engine, self._numbers, link, self._setup.dataset, random.Random(self._chance.random()))

    def _neighbours(self, peer: Peer) -> list[Peer]:
        others = [other for other in self._reachable if other is not peer]
        return [self._root, *self._chance.sample(others, min(self._setup.neighbours, len(others)))]

    def _churn(self, bound_s: float) -> None:
        """In the first half of the time that the bound gives: later, newcomers would be all that is measured."""
        gone = round(self._setup.gone * len(self._peers))
        away = round(self._setup.restarts * len(self._peers))
        places = self._chance.sample(range(len(self._peers)), gone + away)
        for count, place in enumerate(places):
            at_s = self._chance.uniform(0.05, 0.5) * bound_s
            self._engine.after(at_s, self._replace if count < gone else self._restart, place)

    def _replace(self, place: int) -> None:
        old = self._peers[place]
        old.leave()
        self._left.append(old)
        new = self._peers[place] = self._peer(Link(old.link.up_bytes_s, old.link.down_bytes_s))
        new.joined_s = self._engine.now_s
        if old.reachable:
            self._reachable[self._reachable.index(old)] = new
        new.join(self._neighbours(new), self._reachable)

    def _restart(self, place: int) -> None:
        peer = self._peers[place]
        peer.leave()
        self._engine.after(self._chance.uniform(5, 20), peer.join, self._neighbours(peer), self._reachable)
