"""What people see of transfers, put together from the parts that know: who delivers, who fetches, how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dhtdata.control.protocol import Progress, Traffic, Upload
from dhtdata.peer.tally import Tally
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.members import Member
from dhtdata.transfer.meters import Meter, lower_bound_s
from dhtdata.transfer.providers import Remote, Remotes
from dhtdata.transfer.rates import Limits
from dhtdata.transfer.server import Served
from dhtdata.transfer.swarm import Swarm

MAX_TRAFFIC = 1_024
MAX_TOLD = 64
MAX_UPLOADS = 64


@dataclass(frozen=True)
class Figures:
    """Everything that is measured while bytes come and go."""

    fetcher: Fetcher
    remotes: Remotes
    holdings: Holdings
    served: Served
    limits: Limits

    def traffic(self) -> tuple[Traffic, ...]:
        """Every address that delivered something, or made us throw something away; the most bytes first."""
        met = [remote for remote in self.remotes.everybody() if remote.bytes or remote.wasted]
        return tuple(self._of(remote) for remote in sorted(met, key=lambda remote: -remote.bytes)[:MAX_TRAFFIC])

    def among(self, swarm: Swarm) -> tuple[Traffic, ...]:
        """The providers of one dataset that do something, did something or are avoided; the fastest first."""
        told = [
            self._of(self.remotes.at(member.provider), _share(member, swarm))
            for member in swarm.members
            if not member.doubtful or self.remotes.at(member.provider).bytes
        ]
        return tuple(sorted(told, key=lambda one: (-one.rate_bytes_s, -one.outstanding, -one.bytes))[:MAX_TOLD])

    def uploads(self) -> tuple[Upload, ...]:
        """Who fetches from us; the fastest first."""
        busiest = self.served.sent.busiest(MAX_UPLOADS)
        return tuple(Upload(address=ip, bytes=rate.bytes, rate_bytes_s=rate.bytes_s) for ip, rate in busiest)

    @contextmanager
    def fetching(self, swarm: Swarm, tally: Tally) -> Iterator[FetchFigures]:
        """The figures of one fetch, from now on until the block ends."""
        with self.fetcher.received.watch() as meter:
            yield FetchFigures(self, swarm, tally, meter)

    def wasted(self) -> int:
        """Bytes thrown away, of those addresses that are remembered."""
        return sum(remote.wasted for remote in self.remotes.everybody())

    def _of(self, remote: Remote, share: float | None = None) -> Traffic:
        measured = self.fetcher.received.rate(remote.provider)
        return Traffic(
            address=str(remote.provider),
            bytes=remote.bytes,
            blocks=remote.blocks,
            wasted=remote.wasted,
            avoided=self.remotes.avoided(remote.provider),
            rate_bytes_s=measured.bytes_s,
            latency_s=measured.latency_s,
            outstanding=remote.outstanding_bytes,
            share=share,
        )


@dataclass
class FetchFigures:
    """One fetch. What the swarm and the remotes counted before does not belong to it."""

    figures: Figures
    swarm: Swarm
    tally: Tally
    meter: Meter
    begun_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        swarm = self.swarm
        self._before = (swarm.blocks_verified, swarm.bytes_verified, swarm.bytes_reused, self.figures.wasted())

    def progress(self) -> Progress:
        """How far it is now."""
        swarm, tally = self.swarm, self.tally
        blocks, fetched, reused, wasted = (
            max(now - before, 0)
            for now, before in zip(
                (swarm.blocks_verified, swarm.bytes_verified, swarm.bytes_reused, self.figures.wasted()),
                self._before,
                strict=True,
            )
        )
        partials = self.figures.holdings.begun()
        held = tally.held_bytes(partials)
        elapsed_s = time.monotonic() - self.begun_s
        return Progress(
            shards=tally.shards,
            shards_total=tally.shards_total,
            bytes=held,
            bytes_total=tally.bytes_total,
            providers=len(swarm.members),
            have=tally.have(partials),
            blocks=blocks,
            blocks_total=blocks + _blocks_in(tally.bytes_total - held, blocks, fetched),
            fetched=fetched,
            reused=reused,
            wasted=wasted,
            rate_bytes_s=self.figures.fetcher.received.total().bytes_s,
            elapsed_s=elapsed_s,
            bound_s=lower_bound_s(fetched, elapsed_s, self.meter.best_bytes_s, self.figures.limits.rates.down),
            traffic=self.figures.among(swarm),
            peer_received=self.figures.fetcher.bytes_received,
        )


def _blocks_in(byte_count: int, blocks: int, their_bytes: int) -> int:
    """About how many blocks these bytes are, going by the blocks that came; 0 while none did."""
    return -(-byte_count * blocks // their_bytes) if their_bytes else 0


def _share(member: Member, swarm: Swarm) -> float | None:
    """Of the dataset's shards that a member holds, parts of shards included; None if it has not told."""
    if member.complete:
        return 1.0
    if member.revision is None or swarm.layout is None:
        return None
    # How many blocks a partial shard has is not known of every one: half of it, on average.
    whole = member.shard_count + sum(map(bool, member.blocks.values())) / 2
    return min(whole / swarm.layout.shard_count, 1.0)
