"""A process that holds slow and half-open connections to a seed, of `KINDS`, and opens a new one for each that is cut.

Commands: ``attack`` (``port``, ``path`` of a large blob, ``small`` path, ``connections``, ``addresses``, ``seed``)
answers once nearly all are open; ``state`` says how many are open now and how often they were cut.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from benchmarks.dht_real.process import Command, obey

FIRST_ADDRESS = 9
DRIP_S = 0.5
READ_BYTES_S = 20_000
START_S = 3.0
_RETRY_S = 0.05
_SMALL_WINDOW = 32 << 10
_loop = asyncio.get_running_loop


class Attack:
    """Connections by kind; ``opened`` and ``cut`` count them since the start."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._chance = random.Random(command["seed"])
        self._tasks: set[asyncio.Task[None]] = set()
        self.opened: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()

    async def start(self) -> None:
        names = list(KINDS)
        for number in range(self._command["connections"]):
            kind = names[number % len(names)]
            ip = f"127.0.0.{FIRST_ADDRESS + number % self._command['addresses']}"
            self._tasks.add(asyncio.create_task(self._hold(kind, ip, START_S * self._chance.random())))
        while sum(self.open.values()) < self._command["connections"] * 0.9:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _hold(self, kind: str, ip: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while True:
            connection = socket.socket()
            connection.setblocking(False)
            connection.bind((ip, 0))
            try:
                if kind in ("reads nothing", "reads slowly"):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_WINDOW)
                await _loop().sock_connect(connection, ("127.0.0.1", self._command["port"]))
                self.opened[kind] += 1
                self.open[kind] += 1
                try:
                    await KINDS[kind](connection, self._command, self._chance)
                finally:
                    self.open[kind] -= 1
                    self.cut[kind] += 1
            except OSError:
                # Cut, or refused: another one takes its place.
                await asyncio.sleep(_RETRY_S)
            finally:
                connection.close()


async def says_nothing(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _loop().sock_recv(connection, 1)


async def drips_headers(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _send(connection, "GET / HTTP/1.1\r\nX: ")
    while True:
        await asyncio.sleep(DRIP_S * (0.5 + chance.random()))
        await _send(connection, "x")


async def drips_a_body(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _send(connection, f"GET {command['small']} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await asyncio.sleep(DRIP_S * (0.5 + chance.random()))
        await _send(connection, "x")


async def reads_nothing(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _send(connection, f"GET {command['path']} HTTP/1.1\r\nHost: x\r\n\r\n")
    while True:
        # A connection that was cut says so when it is written to.
        await asyncio.sleep(1.0)
        await _send(connection, "\r\n")


async def reads_slowly(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _send(connection, f"GET {command['path']} HTTP/1.1\r\nHost: x\r\n\r\n")
    while await _loop().sock_recv(connection, READ_BYTES_S // 4):  # noqa: ASYNC110
        await asyncio.sleep(0.25)


async def asks_and_idles(connection: socket.socket, command: Command, chance: random.Random) -> None:
    await _send(connection, f"GET {command['small']} HTTP/1.1\r\nHost: x\r\n\r\n")
    while await _loop().sock_recv(connection, 65_536):
        pass


async def _send(connection: socket.socket, text: str) -> None:
    await _loop().sock_sendall(connection, text.encode())


KINDS: dict[str, Callable[[socket.socket, Command, random.Random], Awaitable[None]]] = {
    "says nothing": says_nothing,
    "drips headers": drips_headers,
    "drips a body": drips_a_body,
    "reads nothing": reads_nothing,
    "reads slowly": reads_slowly,
    "asks and idles": asks_and_idles,
}


async def main() -> None:
    attacks: list[Attack] = []

    async def answer(command: Command) -> Command:
        if command["command"] == "attack":
            attacks.append(Attack(command))
            await attacks[-1].start()
        attack = attacks[-1]
        return {"open": dict(attack.open), "opened": dict(attack.opened), "cut": dict(attack.cut)}

    await obey(answer)


if __name__ == "__main__":
    asyncio.run(main())
