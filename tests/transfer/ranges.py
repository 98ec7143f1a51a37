"""Ranges as the fetcher's threads read them, for tests that live in an event loop."""

from __future__ import annotations

import asyncio

from dhtdata.digest import Digest
from dhtdata.formats.web_seeds import Provider
from dhtdata.network import PUBLIC, Network
from dhtdata.transfer.wire import Connection, blob_path


async def read_range(
    provider: Provider,
    digest: Digest,
    offset: int,
    length: int,
    *,
    network: Network = PUBLIC,
    source_ip: str = "::",
) -> bytearray:
    """Bytes ``[offset, offset + length)`` of a blob, over a connection of their own."""
    body = bytearray(length)
    connection = Connection(provider, network, source_ip)

    def read() -> None:
        try:
            connection.open(blob_path(digest), offset, length)
            connection.read_into(memoryview(body))
        finally:
            connection.close()

    await asyncio.to_thread(read)
    return body
