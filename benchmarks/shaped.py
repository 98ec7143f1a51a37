"""One seed and eight peers on links of 100 Mbit/s each way: how near is the crowd to the lower bound?

Every host is a network namespace with a link of its own (`benchmarks.namespaces`), checked first with one raw TCP
stream. All peers run before the clock starts and know nobody; then all are given the same ticket at once, and the clock
stops when the last of them has every shard, verified and synced. Asked twice:

- ``all``: eight followers that are seeds, so that they serve what they have;
- ``half``: four of those, and four private peers, which can be reached by nobody and upload nothing.

The lower bound is max(F/u_s, F/d_min, N*F/(u_s + sum u_i)) at the nominal rate of the links, headers not counted.
Without root or ``ip netns`` nothing is measured: the figures say ``skipped`` and why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, arguments, report, temporary_folder
from benchmarks.hostile_real.peers import START_S, Seed, end, seeding, settings_at
from benchmarks.hostile_real.worlds import Shape, World, make_world
from benchmarks.namespaces import Host, hosts, missing, stream_rate
from dhtdata.control import PeerClient
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store

SEED = 1
RATE_BITS_S = 100_000_000
FOLLOWERS = 8
SHARD = Shape(1, 32, 1 << 20)
FULL_SHARDS, QUICK_SHARDS = 8, 2
OWN = Shape(1, 1, 1_000)
PROBE_BYTES = 24 << 20
LOOK_S = 0.1
IDLE_S = 2.0
NEAR_END = 0.95
LIMIT_BOUNDS = 12
BAR = 1.25


@dataclass
class Story:
    """One crowd, by host: seconds since the clock's start, bytes on its link, bytes that it says it threw away."""

    size: int
    bound_s: float
    done_s: dict[str, float] = field(default_factory=dict)
    first_byte_s: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    seed_curve: list[tuple[float, int]] = field(default_factory=list)
    wasted: dict[str, int] = field(default_factory=dict)
    cores_busy: float = 0.0
    verified: bool = False

    @property
    def took_s(self) -> float:
        return max(self.done_s.values())


def lower_bound_s(size: int, followers: int, uploading: int) -> float:
    """No schedule can be faster: the seed sends every byte once, each follower receives all, somebody sends each."""
    rate = RATE_BITS_S / 8
    return max(size / rate, followers * size / (rate * (1 + uploading)))


@contextmanager
def running_seed(folder: Path, host: Host, targets: Sequence[str]) -> Iterator[tuple[Seed, PeerClient]]:
    settings = settings_at(folder, host.ip)
    with Store.open(settings.store) as store, seeding(settings, targets, before=host.enter) as seed:
        # A Unix socket is reached from every network namespace.
        with PeerClient.connect(store, settings, start=False, keeps_alive=False) as client:
            yield seed, client


@contextmanager
def running_getter(folder: Path, host: Host) -> Iterator[subprocess.Popen[str]]:
    command = [*host.enter, sys.executable, "-m", "benchmarks.hostile_real.getter_worker", str(folder), host.ip]
    getter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if getter.stdout is None or getter.stdout.readline() != "ready\n":
            raise RuntimeError(f"no private peer on {host.ip}")
        yield getter
    finally:
        if getter.stdin is not None:
            getter.stdin.close()
        try:
            getter.wait(START_S)
        except subprocess.TimeoutExpired:
            end(getter)


def follow(story: Story, name: str, client: PeerClient, world: World, ticket: str, started_s: float) -> None:
    """Give a running seed the ticket and wait until it has everything."""
    client.seed(ticket, START_S)
    limit_s = started_s + LIMIT_BOUNDS * story.bound_s
    while time.perf_counter() < limit_s:
        status = client.status()
        now_s = time.perf_counter() - started_s
        if status.bytes_fetched > OWN.bytes * 8:
            story.first_byte_s.setdefault(name, now_s)
        held = {dataset.manifest: dataset.state for dataset in status.datasets}
        if held.get(world.manifest) == "complete":
            story.done_s[name] = now_s
            story.wasted[name] = sum(traffic.wasted for traffic in status.traffic)
            return
        # Rarely in between: a status costs the peer more than a block does.
        near = name not in story.first_byte_s or status.bytes_fetched > NEAR_END * world.bytes
        time.sleep(LOOK_S if near else 8 * LOOK_S)
    raise RuntimeError(f"{name} is not complete after {LIMIT_BOUNDS} times the lower bound: {held}")


def get(story: Story, name: str, getter: subprocess.Popen[str], ticket: str) -> None:
    if getter.stdin is None or getter.stdout is None:
        raise RuntimeError("a process without pipes")
    getter.stdin.write(f"{ticket}\n")
    getter.stdin.flush()
    line = getter.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended early")
    story.done_s[name] = float(json.loads(line)["seconds"])


def crowd(folder: Path, world: World, machines: Sequence[Host], uploading: int) -> Story:
    """All of the dataset to all hosts but the first, which has it; ``uploading`` of them serve what they have."""
    story = Story(world.bytes, lower_bound_s(world.bytes, len(machines) - 1, uploading))
    first, others = machines[0], machines[1:]
    with ExitStack() as stack:
        seed, client = stack.enter_context(running_seed(folder / "seed", first, [str(world.manifest)]))
        ticket = str(Ticket(world.manifest, (seed.address,)))
        work: list[Any] = []
        started = threading.Barrier(len(others) + 1)
        for number, host in enumerate(others):
            own = folder / f"host-{number}"
            if number < uploading:
                target = _own_dataset(own, number)
                _, follower = stack.enter_context(running_seed(own, host, [target]))
                work.append((follow, host, follower))
            else:
                work.append((get, host, stack.enter_context(running_getter(own, host))))
        before = {host.ip: host.traffic() for host in machines}
        served_before = client.status().bytes_served
        clock: list[float] = []

        def carry_out(item: Any) -> None:
            act, host, remote = item
            started.wait()
            if act is follow:
                follow(story, host.ip, remote, world, ticket, clock[0])
            else:
                get(story, host.ip, remote, ticket)

        with ThreadPoolExecutor(len(others)) as pool:
            running = [pool.submit(carry_out, item) for item in work]
            clock.append(time.perf_counter())
            busy_s = busy_core_s()
            started.wait()
            while not all(one.done() for one in running):
                story.seed_curve.append((time.perf_counter() - clock[0], client.status().bytes_served - served_before))
                time.sleep(5 * LOOK_S)
            for one in running:
                one.result()
            story.cores_busy = (busy_core_s() - busy_s) / (time.perf_counter() - clock[0])
        for host in machines:
            sent, received = host.traffic()
            story.sent[host.ip] = sent - before[host.ip][0]
            story.received[host.ip] = received - before[host.ip][1]
    stores = [folder / f"host-{number}" / "store" for number in range(len(others))]
    story.verified = all(_holds(path, world) for path in stores)
    return story


def busy_core_s() -> float:
    """Seconds of processor that this machine has used since it started, all cores and everybody on it."""
    user, nice, system, _, _, irq, soft_irq, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=11)[1:11])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def _own_dataset(folder: Path, number: int) -> str:
    """A seed needs something to seed: a small dataset of its own, which nobody else wants."""
    own = make_world(1_000 + number, OWN, f"own-{number}")
    with Store.open(settings_at(folder).store) as store:
        own.publish(store)
    return str(own.manifest)


def _holds(path: Path, world: World) -> bool:
    with Store.open(path) as store:
        return world.held_by(store)


def figures_of(name: str, story: Story, machines: Sequence[Host]) -> dict[str, float | str]:
    if not story.verified:
        raise RuntimeError(f"{name}: not every host holds every byte")
    seed = machines[0].ip
    ordered = sorted(story.done_s.values())
    idle = sum(
        right_s - left_s
        for (left_s, left), (right_s, right) in zip(story.seed_curve, story.seed_curve[1:], strict=False)
        if right == left
    )
    figures: dict[str, float | str] = {
        f"{name}_bound_s": story.bound_s,
        f"{name}_first_done_s": ordered[0],
        f"{name}_median_done_s": ordered[len(ordered) // 2],
        f"{name}_last_done_s": ordered[-1],
        f"{name}_cores_busy": story.cores_busy,
        f"{name}_seed_copies": story.sent[seed] / story.size,
        f"{name}_seed_idle_s": idle,
        f"{name}_received_copies_worst": max(story.received[host.ip] for host in machines[1:]) / story.size,
        f"{name}_wasted_copies_worst": max(story.wasted.values()) / story.size,
        f"{name}_mib_sent_by_host": " ".join(f"{story.sent[host.ip] / (1 << 20):.0f}" for host in machines),
        f"{name}_mib_received_by_host": " ".join(f"{story.received[host.ip] / (1 << 20):.0f}" for host in machines),
    }
    if story.first_byte_s:
        figures[f"{name}_first_byte_seen_s"] = max(story.first_byte_s.values())
    return figures


def main() -> None:
    given = arguments(__doc__ or "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if reason := missing():
        report("shaped", SEED, 1, {"skipped": reason}, [], given.json)
        return
    shards = QUICK_SHARDS if given.quick else FULL_SHARDS
    world = make_world(SEED, Shape(shards, SHARD.blocks, SHARD.block_bytes))
    figures: dict[str, float | str] = {"hosts": FOLLOWERS + 1, "dataset_mib": world.bytes / (1 << 20)}
    idle_from_s = busy_core_s()
    time.sleep(IDLE_S)
    # What others did on this machine: with the peers' own work it must fit into its cores.
    figures["cores_busy_before"] = (busy_core_s() - idle_from_s) / IDLE_S
    checks: list[Check] = []
    with hosts(FOLLOWERS + 1, RATE_BITS_S) as machines:
        rate = stream_rate(machines[0], machines[1], PROBE_BYTES)
        figures["raw_stream_share_of_rate"] = 8 * rate / RATE_BITS_S
        for name, uploading in (("all", FOLLOWERS), ("half", FOLLOWERS // 2)):
            with temporary_folder() as folder:
                with Store.open(settings_at(folder / "seed").store) as store:
                    world.publish(store)
                story = crowd(folder, world, machines, uploading)
            figures |= figures_of(name, story, machines)
            checks.append(Check(f"{name}_times_the_bound", story.took_s / story.bound_s, "<=", BAR))
    report("shaped", SEED, 1, figures, checks, given.json)


if __name__ == "__main__":
    main()
