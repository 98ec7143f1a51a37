"""A little internet inside this machine: hosts in network namespaces, each on a link of limited speed.

::

    host 1 ── veth ──┐
    host 2 ── veth ──┤ bridge, in a namespace of its own
    host n ── veth ──┘

A token bucket at the host's end limits what it sends, one at the bridge's end what it receives. Packets are jumbo
frames: with 1,500 bytes the bridge and the buckets of nine hosts at 100 Mbit/s took one of two cores, which real hosts
do not share with their switch, and all that ran beside them waited.

Nothing of it is in the namespace of the machine itself, so removing the namespaces removes everything. Names carry the
process id of who made them: what a killed process left is removed by the next one. Needs root and ``ip`` and ``tc`` of
iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "dhtdata-bench-"
INTERFACE = "link0"
BURST_BYTES = 128 << 10
QUEUE_BYTES = 1 << 20
MTU_BYTES = "9000"
_COMMAND_S = 20.0
_PROBE_PORT = 9_000

_SEND = """
import socket, sys
into = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
into.sendall(bytes(int(sys.argv[3])))
into.shutdown(socket.SHUT_WR)
into.recv(1)
"""
_RECEIVE = """
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("ready", flush=True)
    server.settimeout(10)
    out, _ = server.accept()
    buffer, count, started = bytearray(1 << 18), 0, time.perf_counter()
    while got := out.recv_into(buffer):
        count += got
    print(count / (time.perf_counter() - started), flush=True)
    out.sendall(b".")
"""


@dataclass(frozen=True)
class Host:
    """``enter``: what to put before a command that shall run there."""

    namespace: str
    ip: str

    @property
    def enter(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, headers included."""
        said = _run("ip", "-n", self.namespace, "-s", "-j", "link", "show", INTERFACE)
        counted = json.loads(said)[0]["stats64"]
        return int(counted["tx"]["bytes"]), int(counted["rx"]["bytes"])


def missing() -> str:
    """Why there can be no namespaces here; empty if there can be."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"there is no {tool}: install iproute2"
    name = f"{PREFIX}{os.getpid()}-probe"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", name, "link", "add", "end0", "type", "veth", "peer", "name", "end1")
        _limit(name, "end0", 1_000_000)
    except RuntimeError as failure:
        return str(failure)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_COMMAND_S)
    return ""


@contextmanager
def hosts(count: int, rate_bits_s: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other, each limited to this rate each way. RuntimeError if that is not possible."""
    remove_stale()
    own = f"{PREFIX}{os.getpid()}"
    switch = f"{own}-switch"
    made = [Host(f"{own}-{number}", f"10.77.0.{number + 1}") for number in range(count)]
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made):
            _connect(host, switch, f"port{number}", rate_bits_s)
        yield made
    finally:
        for name in [*(host.namespace for host in made), switch]:
            _remove(name)


def remove_stale() -> None:
    """Remove what processes of this benchmark left that live no more, and what they left running in there."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.split() else ""
        maker = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and maker.isdigit() and not Path(f"/proc/{maker}").exists():
            _remove(name)


def stream_rate(source: Host, sink: Host, byte_count: int) -> float:
    """Bytes a second that one TCP stream brings from one host to another, shaping as it is."""
    port = str(_PROBE_PORT)
    receiver = subprocess.Popen(
        [*sink.enter, sys.executable, "-c", _RECEIVE, sink.ip, port], stdout=subprocess.PIPE, text=True
    )
    try:
        if receiver.stdout is None or receiver.stdout.readline() != "ready\n":
            raise RuntimeError(f"nothing listens on {sink.ip}")
        _run(*source.enter, sys.executable, "-c", _SEND, sink.ip, port, str(byte_count), timeout_s=120)
        return float(receiver.stdout.readline())
    finally:
        receiver.kill()
        receiver.wait(_COMMAND_S)


def _connect(host: Host, switch: str, port: str, rate_bits_s: int) -> None:
    _run("ip", "netns", "add", host.namespace)
    ends = ("type", "veth", "peer", "name", INTERFACE, "netns", host.namespace)
    _run("ip", "-n", switch, "link", "add", port, *ends)
    _run("ip", "-n", switch, "link", "set", port, "mtu", MTU_BYTES, "master", "switch", "up")
    _run("ip", "-n", host.namespace, "link", "set", INTERFACE, "mtu", MTU_BYTES)
    _run("ip", "-n", host.namespace, "address", "add", f"{host.ip}/24", "dev", INTERFACE)
    for interface in (INTERFACE, "lo"):
        _run("ip", "-n", host.namespace, "link", "set", interface, "up")
    _limit(host.namespace, INTERFACE, rate_bits_s)
    _limit(switch, port, rate_bits_s)


def _limit(namespace: str, interface: str, rate_bits_s: int) -> None:
    shape = ("tbf", "rate", f"{rate_bits_s}bit", "burst", str(BURST_BYTES), "limit", str(QUEUE_BYTES))
    _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *shape)


def _remove(namespace: str) -> None:
    """Gone at once: nothing that still ran in it keeps it."""
    inside = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=_COMMAND_S
    ).stdout.split()
    for pid in inside:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, timeout=_COMMAND_S)


def _run(*command: str, timeout_s: float = _COMMAND_S) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:6])} … failed: {done.stderr.strip()[-300:]}")
    return done.stdout
