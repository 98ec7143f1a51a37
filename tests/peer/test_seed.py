from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from dhtdata.config import runtime_folder
from dhtdata.control import PeerClient
from dhtdata.control.client import socket_path
from dhtdata.control.protocol import Progress
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import LocalName, Ticket, parse_target
from dhtdata.store import Store
from tests.peer.processes import opened, seeding, settings_at, start_seed, until
from tests.peer.worlds import DAY_S, Publisher, World, make_world


def _published(folder: Path, world: World, publisher: Publisher | None = None, sequence: int = 1) -> None:
    with Store.open(settings_at(folder).store) as store:
        world.publish(store)
        if publisher is not None:
            store.put_name_record(publisher.sign(world, sequence))


def _resolve_all(client: PeerClient, world: World, publisher: Publisher, address: Address) -> None:
    ticket = Ticket(publisher.name(), (address,))
    assert client.resolve(ticket, 20).manifest == world.manifest


def test_a_ticket_leads_to_every_byte(tmp_path: Path) -> None:
    world, publisher = make_world(1), Publisher.fresh()
    _published(tmp_path / "a", world, publisher)
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            found = client.resolve(Ticket(publisher.name(), (seed.address,)), 20)
            assert (found.manifest, found.contents, found.stale) == (world.manifest, world.contents, False)
            assert found.name == publisher.name(sequence=1)
            seen: list[Progress] = []
            client.fetch_dataset(found.manifest, on_progress=seen.append)
            assert world.held_by(store)
            assert seen[-1].bytes == seen[-1].bytes_total == sum(len(shard.body) for shard in world.shards)
            status = client.status()
            assert status.kind == "private"
            assert [(traffic.address, traffic.bytes) for traffic in status.traffic] == [
                (str(seed.address), seen[-1].bytes)
            ]
            assert status.blocks_verified == sum(len(shard.table.blocks) for shard in world.shards)
            assert [(one.address, one.seed) for one in client.providers(found.contents)] == [(str(seed.address), True)]


def test_names_and_providers_are_found_through_the_dht(tmp_path: Path) -> None:
    """Four seeds, of which only one has the dataset; the reader knows another one only."""
    world, publisher = make_world(2), Publisher.fresh()
    _published(tmp_path / "a", world, publisher)
    with seeding(settings_at(tmp_path / "hub")) as hub:
        others = [settings_at(tmp_path / name, bootstrap=(hub.address,)) for name in ("a", "c", "d")]
        with seeding(others[0]) as holder, seeding(others[1]), seeding(others[2]):
            with opened(tmp_path / "a") as (first, first_settings):
                with PeerClient.connect(first, first_settings, start=False) as client:
                    until(lambda: client.status().datasets[0].holders >= 2)
                with opened(tmp_path / "b", bootstrap=(hub.address,)) as (store, settings):
                    with PeerClient.connect(store, settings, start=True) as reader:
                        found = reader.resolve(publisher.name(), 20)
                        reader.fetch_dataset(found.manifest)
                        assert world.held_by(store)
                        assert {traffic.address for traffic in reader.status().traffic} == {str(holder.address)}
                        assert {one.address for one in reader.providers(found.contents) if one.seed} == {
                            str(holder.address)
                        }
                    with PeerClient.connect(store, settings, start=False) as reader:
                        assert reader.resolve(world.manifest, 20).contents == world.contents


def test_a_seed_fetches_what_it_is_told_to_keep_and_serves_it_after_the_publisher_died(tmp_path: Path) -> None:
    world, publisher = make_world(3), Publisher.fresh()
    _published(tmp_path / "a", world, publisher)
    with seeding(settings_at(tmp_path / "a")) as first:
        ticket = str(Ticket(publisher.name(), (first.address,)))
        with seeding(settings_at(tmp_path / "b"), ticket) as second:
            said = second.line()
            assert said.startswith("seeded dhtdata1")
            with opened(tmp_path / "c") as (store, settings):
                with Store.open(second.settings.store) as held:
                    until(lambda: held.has(world.shards[-1].digest) and world.held_by(held))
                first.kill()
                with PeerClient.connect(store, settings, start=True) as client:
                    found = client.resolve(parse_target(said.split()[1]), 20)
                    client.fetch_dataset(found.manifest)
                    assert world.held_by(store)


def test_what_is_seeded_survives_a_restart(tmp_path: Path) -> None:
    world = make_world(4)
    _published(tmp_path / "a", world)
    with seeding(settings_at(tmp_path / "a")) as seed, seeding(settings_at(tmp_path / "b")) as other:
        with opened(tmp_path / "b") as (store, settings):
            with PeerClient.connect(store, settings, start=False) as client:
                seeded = client.seed(Ticket(world.manifest, (seed.address,)), 20)
                assert seeded.manifest == world.manifest
                assert Ticket.parse(seeded.ticket).addresses == (other.address,)
                until(lambda: client.status().datasets[0].state == "complete")
        assert other.end() == 0
        with seeding(other.settings), opened(tmp_path / "b") as (store, settings):
            with PeerClient.connect(store, settings, start=False) as client:
                until(lambda: [held.state for held in client.status().datasets] == ["complete"])
                assert client.status().datasets[0].bytes_held == sum(len(shard.body) for shard in world.shards)
                assert Ticket.parse(client.ticket(world.manifest)).target == world.manifest


def test_a_dataset_published_while_a_seed_runs_is_taken_up(tmp_path: Path) -> None:
    world, publisher = make_world(5), Publisher.fresh()
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "a") as (store, settings):
        with PeerClient.connect(store, settings, start=False) as client:
            assert client.status().datasets == ()
            world.publish(store)
            store.put_name_record(publisher.sign(world))
            client.announce(world.manifest)
            until(lambda: client.status().datasets[0].state == "complete")
            assert Ticket.parse(client.ticket(LocalName("world"))).addresses == (seed.address,)
            with pytest.raises(NotFoundError):
                client.ticket(Digest.of(b"unknown"))


def test_the_newest_name_wins_and_there_is_no_way_back(tmp_path: Path) -> None:
    old, new, publisher = make_world(6), make_world(7), Publisher.fresh()
    _published(tmp_path / "old", old, publisher, 1)
    _published(tmp_path / "new", new, publisher, 2)
    with (
        seeding(settings_at(tmp_path / "old")) as first,
        seeding(settings_at(tmp_path / "new")) as second,
        opened(tmp_path / "b") as (store, settings),
        PeerClient.connect(store, settings, start=True) as client,
    ):
        assert client.resolve(Ticket(publisher.name(), (first.address,)), 20).manifest == old.manifest
        assert client.resolve(Ticket(publisher.name(), (first.address, second.address)), 20).manifest == new.manifest
        second.kill()
        assert client.resolve(Ticket(publisher.name(), (first.address,)), 20).manifest == new.manifest
        with pytest.raises(NotFoundError, match="not the newest"):
            client.resolve(Ticket(publisher.name(sequence=1), (first.address,)), 20)


def test_a_stale_name_is_usable_and_shown_as_stale(tmp_path: Path) -> None:
    world, publisher = make_world(8), Publisher.fresh()
    _published(tmp_path / "a", world)
    with Store.open(settings_at(tmp_path / "a").store) as store:
        store.put_name_record(publisher.sign(world, fresh_s=-DAY_S))
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            assert client.resolve(Ticket(publisher.name(), (seed.address,)), 20).stale


def test_a_digest_that_nobody_has_ends_with_who_was_asked(tmp_path: Path) -> None:
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            missing = Ticket(Digest.of(b"nobody has this"), (seed.address,))
            with pytest.raises(NotFoundError, match=r"asked (the DHT \(1 node known\)|no DHT .*) and 1 peer in \d"):
                client.resolve(missing, 20)
            with pytest.raises(NotFoundError, match="nobody knows"):
                client.resolve(Ticket(Publisher.fresh().name(), (seed.address,)), 20)


def test_the_time_of_a_search_in_vain_includes_what_entering_the_dht_took(tmp_path: Path) -> None:
    with opened(tmp_path / "b") as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = Address("127.0.0.1", closed.getsockname()[1])
            begun_s = time.monotonic()
            with pytest.raises(NotFoundError, match=r"no DHT node \(none was met\) and 1 peer in ") as failure:
                client.resolve(Ticket(Publisher.fresh().name(), (nobody,)), 20)
            took_s = time.monotonic() - begun_s
        said = re.search(r"in ([0-9.]+) s", str(failure.value))
        assert took_s > 2 and said is not None and float(said[1]) > took_s - 1


def test_with_nobody_to_ask_a_ticket_is_asked_for_at_once(tmp_path: Path) -> None:
    with opened(tmp_path / "b") as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        for target in (Digest.of(b"x"), Publisher.fresh().name()):
            with pytest.raises(ConfigError, match="ticket"):
                client.resolve(target, 20)
        with pytest.raises(NotFoundError, match="ticket"):
            client.resolve(LocalName("unknown"), 20)


def test_a_second_seed_on_one_store_is_refused(tmp_path: Path) -> None:
    settings = settings_at(tmp_path / "a")
    with seeding(settings):
        second = start_seed(settings)
        said, _ = second.communicate(timeout=15)
        assert second.returncode == 1
        assert said.startswith("failed AlreadyRunning a seed (pid ")
        assert "adds to it" in said


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_is_named_and_never_changed(tmp_path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        seed = start_seed(settings_at(tmp_path / "a", port=port))
        said, _ = seed.communicate(timeout=15)
    assert seed.returncode == 1
    assert said.startswith("failed ConfigError")
    assert str(port) in said
    assert "--port" in said


def test_a_target_nobody_has_ends_the_seed_with_its_error(tmp_path: Path) -> None:
    seed = start_seed(settings_at(tmp_path / "a"), str(Digest.of(b"nobody")))
    said, _ = seed.communicate(timeout=15)
    assert seed.returncode == 1
    assert "failed ConfigError" in said.splitlines()[-1]


def test_a_seed_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "a") as (store, _):
        path = socket_path(store.id)
        assert path.exists()
        assert path.stat().st_mode & 0o077 == 0
        assert runtime_folder() == path.parent
        assert seed.end() == 0
        assert not path.exists()
        with pytest.raises(NotFoundError):
            PeerClient.connect(store, seed.settings, start=False)


def test_a_provider_killed_in_the_middle_is_replaced_by_another(tmp_path: Path) -> None:
    world = make_world(10, shards=6, blocks=40, block_bytes=500_000)
    for name in ("a", "b"):
        _published(tmp_path / name, world)
    # The first to be known serves slowly, so that its bytes are still outstanding when it dies.
    slow = "import os, time\npread = os.pread\nos.pread = lambda *about: (time.sleep(0.02), pread(*about))[1]\n"
    with (
        seeding(settings_at(tmp_path / "a"), first=slow) as dying,
        seeding(settings_at(tmp_path / "b"), first=slow) as living,
        opened(tmp_path / "c") as (store, settings),
        PeerClient.connect(store, settings, start=True) as client,
    ):
        found = client.resolve(Ticket(world.manifest, (dying.address, living.address)), 20)
        killed_at: list[int] = []

        def kill_early(seen: Progress) -> None:
            if not killed_at and client.status().blocks_verified > 20:
                dying.kill()
                killed_at.append(seen.bytes)

        client.fetch_dataset(found.manifest, on_progress=kill_early)
        assert world.held_by(store)
        assert killed_at
        assert killed_at[0] < sum(len(shard.body) for shard in world.shards)
        delivered = {traffic.address: traffic.bytes for traffic in client.status().traffic}
        assert delivered[str(dying.address)] > 0
        assert delivered[str(living.address)] > 0
        assert sum(delivered.values()) == sum(len(shard.body) for shard in world.shards)


def test_a_followed_name_brings_its_next_version(tmp_path: Path) -> None:
    old, new, publisher = make_world(11), make_world(12), Publisher.fresh()
    _published(tmp_path / "a", old, publisher)
    soon = "import dhtdata.peer.seeder as seeder\nseeder.FOLLOW_S = 0.3\n"
    with seeding(settings_at(tmp_path / "a")) as first, opened(tmp_path / "a") as (store, settings):
        ticket = str(Ticket(publisher.name(), (first.address,)))
        with seeding(settings_at(tmp_path / "b"), ticket, first=soon) as second:
            assert second.line().startswith("seeded")
            new.publish(store)
            store.put_name_record(publisher.sign(new, 2))
            with Store.open(second.settings.store) as held:
                until(lambda: new.held_by(held) and old.held_by(held))


def test_a_seed_without_room_waits_and_goes_on_when_there_is(tmp_path: Path) -> None:
    world = make_world(13)
    _published(tmp_path / "a", world)
    gate = tmp_path / "full"
    gate.touch()
    full = (
        "import errno, os\nimport dhtdata.peer.seeder as seeder, dhtdata.store.partial as partial\n"
        f"seeder.RETRY_S = 0.3\nwrite = partial.write_at\ngate = {str(gate)!r}\n"
        "def limited(*about):\n    if os.path.exists(gate):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n    write(*about)\n"
        "partial.write_at = limited\n"
    )
    with (
        seeding(settings_at(tmp_path / "a")) as seed,
        seeding(settings_at(tmp_path / "b"), str(Ticket(world.manifest, (seed.address,))), first=full),
        opened(tmp_path / "b") as (store, settings),
        PeerClient.connect(store, settings, start=False) as client,
    ):
        until(lambda: any("no room" in held.state for held in client.status().datasets))
        shard = world.shards[0]
        with pytest.raises(StoreError, match="no room"):
            client.ensure_blocks(world.contents, shard.digest, shard.table_digest, [1], 10)
        gate.unlink()
        until(lambda: [held.state for held in client.status().datasets] == ["complete"])
        assert world.held_by(store)


def _claims(client: PeerClient, world: World) -> list[str]:
    return [one.address for one in client.providers(world.contents) if one.source == "dht"]


def test_what_is_unpinned_or_removed_is_neither_kept_nor_announced_nor_followed_any_more(tmp_path: Path) -> None:
    unpinned, removed, stays = (make_world(seed, name=f"world-{seed}") for seed in (21, 22, 23))
    publisher = Publisher.fresh()
    worlds = (unpinned, removed, stays)
    for world in worlds:
        _published(tmp_path / "a", world)
    with Store.open(settings_at(tmp_path / "a").store) as store:
        store.put_name_record(publisher.sign(unpinned, text="unpinned"))
    with seeding(settings_at(tmp_path / "hub")) as hub:
        wanted = str(Ticket(publisher.name("unpinned"), (hub.address,)))
        with (
            seeding(settings_at(tmp_path / "a", bootstrap=(hub.address,)), wanted) as seed,
            opened(tmp_path / "a") as (store, settings),
            opened(tmp_path / "b", bootstrap=(hub.address,)) as (_, reader),
            PeerClient.connect(store, settings, start=False) as client,
        ):
            assert seed.line().startswith("seeded")
            until(lambda: [held.holders > 0 for held in client.status().datasets] == [True] * 3)
            followed = settings.store / "peers.json"
            assert "/unpinned" in followed.read_text()
            store.unpin(unpinned.manifest)
            client.announce(unpinned.manifest)
            store.remove_manifest(removed.manifest)
            client.announce(removed.manifest)
            assert [held.manifest for held in client.status().datasets] == [stays.manifest]

            def announced(world: World) -> bool:
                # A look of its own each time: a peer that looked lately does not look again.
                with opened(tmp_path / "b", bootstrap=(hub.address,)) as (other, asking):
                    with PeerClient.connect(other, asking, start=True) as looking:
                        return bool(_claims(looking, world))

            until(lambda: not announced(unpinned) and not announced(removed))
            assert announced(stays)
        assert reader.store.exists()
        assert "/unpinned" not in followed.read_text()


def test_a_pin_that_changed_without_a_word_is_noticed(tmp_path: Path) -> None:
    first, second = make_world(24), make_world(25)
    _published(tmp_path / "a", first)
    soon = "import dhtdata.peer.seeder as seeder\nseeder.PINS_S = 0.1\n"
    with (
        seeding(settings_at(tmp_path / "a"), first=soon),
        opened(tmp_path / "a") as (store, settings),
        PeerClient.connect(store, settings, start=False) as client,
    ):
        until(lambda: [held.manifest for held in client.status().datasets] == [first.manifest])
        second.publish(store)
        store.unpin(first.manifest)
        until(lambda: [held.manifest for held in client.status().datasets] == [second.manifest])


def test_a_seed_repairs_what_it_lost(tmp_path: Path) -> None:
    world = make_world(26)
    _published(tmp_path / "a", world)
    soon = "import dhtdata.peer.seeder as seeder\nseeder.LOSS_S = 0.1\n"
    with (
        seeding(settings_at(tmp_path / "a")) as other,
        seeding(settings_at(tmp_path / "b"), str(Ticket(world.manifest, (other.address,))), first=soon),
        opened(tmp_path / "b") as (store, settings),
        PeerClient.connect(store, settings, start=False) as client,
    ):
        until(lambda: [held.state for held in client.status().datasets] == ["complete"])
        lost = store.path_of(world.shards[1].digest)
        lost.unlink()
        until(lambda: not store.has(world.shards[1].digest) or lost.exists())
        until(lambda: world.held_by(store))


def test_a_seed_whose_store_is_removed_ends_and_says_so(tmp_path: Path) -> None:
    world = make_world(27)
    _published(tmp_path / "a", world)
    soon = "import dhtdata.peer.peer as peer\npeer.STORE_S = 0.1\n"
    with seeding(settings_at(tmp_path / "a"), first=soon) as seed:
        # the seed writes on meanwhile, so that one pass may find a folder it has emptied filled again
        until(lambda: _removed(seed.settings.store))
        assert seed.running.wait(15) == 1
        said = seed.line()
        assert said.startswith("failed StoreError")
        assert str(seed.settings.store) in said


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
