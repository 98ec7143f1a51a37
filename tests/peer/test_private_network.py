"""Peers of a private network: members serve each other, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dhtdata.control import PeerClient
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.ticket import Ticket
from dhtdata.network import Network, new_network, save_network
from dhtdata.store import Store
from tests.peer.processes import SeedProcess, opened, seeding, settings_at
from tests.peer.worlds import Publisher, World, make_world

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
SEARCH_S = 20.0


@dataclass(frozen=True)
class Lab:
    """A private network with one seed."""

    network: Network
    file: Path
    seed: SeedProcess
    world: World
    publisher: Publisher

    def ticket(self, secret: bytes | None = None) -> Ticket:
        return Ticket(self.publisher.name(), (self.seed.address,), secret)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    network, world, publisher = new_network(), make_world(40), Publisher.fresh()
    save_network(folder / "lab.network", network)
    settings = settings_at(folder, network=folder / "lab.network")
    with Store.open(settings.store) as store:
        world.publish(store)
        store.put_name_record(publisher.sign(world))
    with seeding(settings) as seed:
        yield Lab(network, folder / "lab.network", seed, world, publisher)


def test_a_member_gets_every_byte(lab: Lab, tmp_path: Path) -> None:
    with opened(tmp_path, network=lab.file) as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            found = client.resolve(lab.ticket(), SEARCH_S)
            client.fetch_dataset(found.manifest)
            assert lab.world.held_by(store)
            assert client.status().network == lab.network.fingerprint


@pytest.mark.parametrize("kind", ["public", "another network"])
def test_a_stranger_finds_nothing(lab: Lab, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other.network"
    save_network(other, new_network())
    with opened(tmp_path, network=None if kind == "public" else other) as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            for target in (lab.ticket(), Ticket(lab.world.manifest, (lab.seed.address,))):
                with pytest.raises(NotFoundError):
                    client.resolve(target, SEARCH_S)
            assert client.status().bytes_fetched == 0
        assert not store.has(lab.world.manifest)


def test_who_means_another_network_is_refused_and_who_means_none_is_served(lab: Lab, tmp_path: Path) -> None:
    save_network(tmp_path / "other.network", new_network())
    meant = settings_at(tmp_path, network=tmp_path / "other.network")
    with opened(tmp_path, network=lab.file) as (store, settings):
        with PeerClient.connect(store, settings, start=True):
            both = rf"in network {lab.network.fingerprint}, but network [0-9a-f]{{16}} was asked for: run dhtdata stop"
            with pytest.raises(ConfigError, match=both):
                PeerClient.connect(store, meant, start=True)
            for told, any_network in ((settings_at(tmp_path), False), (meant, True)):
                with PeerClient.connect(store, told, start=False, any_network=any_network) as client:
                    assert client.status().network == lab.network.fingerprint


def test_a_ticket_into_another_network_than_the_peers_is_refused(lab: Lab, tmp_path: Path) -> None:
    with opened(tmp_path) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        with pytest.raises(ConfigError, match=rf"leads into network {lab.network.fingerprint}.*in network public"):
            client.resolve(lab.ticket(lab.network.secret), SEARCH_S)


def test_a_seed_gives_the_secret_only_when_asked_for_it(lab: Lab) -> None:
    settings = lab.seed.settings
    with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=False) as client:
        assert Ticket.parse(client.ticket(lab.world.manifest)).secret is None
        assert Ticket.parse(client.ticket(lab.world.manifest, with_secret=True)).secret == lab.network.secret
        assert Ticket.parse(client.seed(lab.ticket(lab.network.secret), SEARCH_S).ticket).secret is None


def test_a_seed_in_the_public_network_has_no_secret_to_give(tmp_path: Path) -> None:
    world = make_world(41)
    with seeding(settings_at(tmp_path)), Store.open(settings_at(tmp_path).store) as store:
        world.publish(store)
        with PeerClient.connect(store, settings_at(tmp_path), start=False) as client:
            client.announce(world.manifest)
            with pytest.raises(ConfigError, match="has no secret: leave --with-secret out"):
                client.ticket(world.manifest, with_secret=True)


def test_a_wrong_network_file_ends_the_start_with_its_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing.network"
    with Store.open(settings_at(tmp_path).store) as store, pytest.raises(ConfigError, match="no network file"):
        PeerClient.connect(store, settings_at(tmp_path, network=missing), start=True)
