from __future__ import annotations

import random

import pytest

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name, encode_key
from dhtdata.network import PUBLIC, new_network
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.client import HttpClient
from tests.peer.worlds import Publisher, make_world
from tests.transfer.evil import KINDS, evil
from tests.transfer.ranges import read_range
from tests.transfer.swarming import NewStore, node, run

BODY = random.Random(3).randbytes(50_000)
DIGEST = Digest.of(BODY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_never_passes_for_a_whole_blob(kind: str) -> None:
    async def main() -> None:
        async with evil(kind, {str(DIGEST): BODY}) as address, HttpClient.running() as http:
            if kind == "whole":
                assert await http.read_blob(address, DIGEST, 60_000) == BODY
            else:
                with pytest.raises((PeerError, IntegrityError)):
                    await http.read_blob(address, DIGEST, 60_000)

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_to_a_question_is_an_error(kind: str) -> None:
    async def main() -> None:
        async with evil(kind, {}) as address, HttpClient.running() as http:
            for question in (
                http.have(address, DIGEST),
                http.peers(address, DIGEST),
                http.providers(address, DIGEST),
                http.name(address, Name(b"k" * 32, "x")),
            ):
                with pytest.raises((PeerError, FormatError, IntegrityError)):
                    await question

    run(main())


def test_wrong_bytes_of_a_blob_are_blamed_on_their_address() -> None:
    async def main() -> None:
        other = Digest.of(b"other")
        async with evil("whole", {str(other): BODY}) as address, HttpClient.running() as http:
            with pytest.raises(IntegrityError) as caught:
                await http.read_blob(address, other, 60_000)
            assert caught.value.culprit == str(address)

    run(main())


def test_a_blob_over_its_limit_is_refused() -> None:
    async def main() -> None:
        async with evil("whole", {str(DIGEST): BODY}) as address, HttpClient.running() as http:
            with pytest.raises(PeerError, match="at most"):
                await http.read_blob(address, DIGEST, len(BODY) - 1)

    run(main())


def test_nobody_at_an_address_is_a_peer_error() -> None:
    async def main() -> None:
        async with HttpClient.running() as http:
            with pytest.raises(PeerError):
                await http.read_blob(Address("127.0.0.1", 1), DIGEST, 10)

    run(main())


def test_a_name_record_of_another_name_is_refused(new_store: NewStore) -> None:
    publisher, world = Publisher.fresh(), make_world()

    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            asked = publisher.name()
            with pytest.raises(NotFoundError):
                await one.http.name(one.address, asked)
            one.directory.names[asked] = publisher.sign(world, text="another").data
            with pytest.raises(FormatError, match="another name"):
                await one.http.name(one.address, asked)
            good = publisher.sign(world)
            one.directory.names[asked] = good.data
            assert (await one.http.name(one.address, asked)).data == good.data

    run(main())
    assert encode_key(publisher.root.public) in str(publisher.name())


def test_members_of_a_private_network_answer_each_other(new_store: NewStore) -> None:
    network, publisher, world = new_network(), Publisher.fresh(), make_world()
    signed = publisher.sign(world).data
    store = new_store("store")
    world.publish(store)
    digest = store.put(BODY)

    async def main() -> None:
        async with node(store, network) as one:
            one.directory.addresses[world.contents] = (Address("192.0.2.7", 1_000),)
            one.directory.records[world.contents] = [ProviderRecord(b"signed", ())]
            one.directory.names[publisher.name()] = signed
            assert await read_range(one.address, digest, 5, 10, network=network) == BODY[5:15]
            assert await one.http.read_blob(one.address, digest, 60_000) == BODY
            have = await one.http.have(one.address, world.contents)
            assert (await one.http.have(one.address, world.contents, have.revision)).unchanged
            assert await one.http.peers(one.address, world.contents) == (Address("192.0.2.7", 1_000),)
            assert len(await one.http.providers(one.address, world.contents)) == 1
            assert (await one.http.name(one.address, publisher.name())).data == signed
            with pytest.raises(NotFoundError):
                await one.http.read_blob(one.address, Digest.of(b"not here"), 10)
            assert one.server.served.strangers == 0

    run(main())


@pytest.mark.parametrize("kind", ["public", "private"])
def test_the_silence_of_another_network_is_a_peer_error(new_store: NewStore, kind: str) -> None:
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        ours = PUBLIC if kind == "public" else new_network()
        async with node(store, new_network()) as one, HttpClient.running(ours) as http:
            for asking in (
                read_range(one.address, digest, 0, 10, network=http.network),
                http.read_blob(one.address, digest, 60_000),
            ):
                with pytest.raises(PeerError):
                    await asking
            assert one.server.served.strangers >= 2
            assert one.server.served.requests == 0

    run(main())
