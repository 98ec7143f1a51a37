from __future__ import annotations

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dhtdata.config import Settings
from dhtdata.control import PeerClient
from dhtdata.control import client as client_module
from dhtdata.control.client import answers, socket_path
from dhtdata.control.lock import ELECTION_LOCK, PEER_LOCK, FileLock
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError, PeerError, StoreError
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store
from tests.peer.processes import alive, kill, opened, seeding, settings_at, until
from tests.peer.worlds import Publisher, make_world


def test_without_permission_to_start_one_there_is_no_peer(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, settings):
        with pytest.raises(NotFoundError, match="no peer"):
            PeerClient.connect(store, settings, start=False)


def test_a_private_peer_serves_nobody_and_knows_it(tmp_path: Path) -> None:
    world = make_world()
    with opened(tmp_path) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        world.publish(store)
        status = client.status()
        assert (status.kind, status.addresses, status.datasets) == ("private", (), ())
        for serve in (client.ticket, client.seed):
            with pytest.raises(ConfigError, match="dhtdata seed takes its place"):
                serve(world.manifest)
        client.announce(world.manifest)
        assert client.status().datasets == ()


def test_many_who_start_at_once_get_the_same_peer(tmp_path: Path) -> None:
    """Threads here, processes of other ranks beside them."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom dhtdata.control import PeerClient\n"
        "from dhtdata.store import Store\n"
        "from tests.peer.processes import settings_at\nsettings = settings_at(Path(sys.argv[1]))\n"
        "with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=True) as client:\n"
        "    print(client.status().pid)\n    sys.stdin.read()\n"
    )
    with opened(tmp_path) as (store, settings):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            for _ in range(3)
        ]
        pids: list[int] = []

        def connect() -> None:
            with PeerClient.connect(store, settings, start=True) as client:
                pids.append(client.status().pid)

        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rank in ranks:
            assert rank.stdout is not None
            pids.append(int(rank.stdout.readline()))
        for rank in ranks:
            rank.communicate("")
        assert len(pids) == 7
        assert len(set(pids)) == 1


def test_a_killed_peer_is_replaced_and_the_question_asked_again(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        first = client.status().pid
        kill(first)
        second = client.status().pid
        assert second != first
        assert alive(second)


def test_a_peer_that_takes_anothers_place_is_told_whom_a_ticket_named(tmp_path: Path) -> None:
    world = make_world()
    giver = settings_at(tmp_path / "giver")
    with Store.open(giver.store) as store:
        world.publish(store)
    with seeding(giver, str(world.manifest)) as seed, opened(tmp_path / "taker") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            client.resolve(str(Ticket(world.manifest, (seed.address,))), 10)
            kill(client.status().pid)
            client.fetch_dataset(world.manifest)
        assert world.held_by(store)


def _status_in_child(client: PeerClient, pids: multiprocessing.queues.Queue[int]) -> None:
    pids.put(client.status().pid)


def test_a_forked_worker_opens_its_own_connection_and_can_replace_a_dead_peer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with opened(tmp_path) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        pids: multiprocessing.queues.Queue[int] = context.Queue()
        first = client.status().pid
        worker = context.Process(target=_status_in_child, args=(client, pids))
        worker.start()
        assert pids.get(timeout=10) == first
        worker.join()
        assert client.status().pid == first
        kill(first)
        worker = context.Process(target=_status_in_child, args=(client, pids))
        worker.start()
        second = pids.get(timeout=15)
        worker.join()
        assert second != first
        assert client.status().pid == second
        pids.close()
        pids.join_thread()


def test_the_peer_is_a_session_of_its_own_on_all_cores_of_its_group(tmp_path: Path) -> None:
    everything = os.sched_getaffinity(0)
    with opened(tmp_path) as (store, settings):
        os.sched_setaffinity(0, {min(everything)})
        try:
            client = PeerClient.connect(store, settings, start=True)
        finally:
            os.sched_setaffinity(0, everything)
        with client:
            pid = client.status().pid
            assert os.getsid(pid) == pid
            assert os.sched_getaffinity(pid) >= everything
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            assert command[1:4] == [b"-P", b"-m", b"dhtdata.peer"]
            assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull


def test_a_seed_takes_the_place_of_a_private_peer(tmp_path: Path) -> None:
    world = make_world()
    with opened(tmp_path) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        private = client.status().pid
        with seeding(settings) as seed:
            until(lambda: not alive(private))
            status = client.status()
            assert (status.kind, status.pid) == ("seed", seed.running.pid)
            world.publish(store)
            client.announce(world.manifest)
            assert client.status().datasets[0].manifest == world.manifest
        assert client.status().kind == "private"


def test_an_unused_private_peer_ends(tmp_path: Path) -> None:
    """The minute is cut to half a second; connections that do not keep it alive do not count."""
    code = "import sys, dhtdata.peer.peer as p\np.LINGER_S = 0.5\nfrom dhtdata.peer import run_private\n"
    settings = settings_at(tmp_path)
    with Store.open(settings.store) as store:
        ready, tell = os.pipe()
        command = [sys.executable, "-c", f"{code}sys.exit(run_private(sys.argv[1:]))", "--store", str(settings.store)]
        command += ["--home", str(settings.home), "--listen", "127.0.0.1", "--ready-fd", str(tell), "--elect"]
        child = subprocess.Popen(command, pass_fds=(tell,))
        os.close(tell)
        assert os.read(ready, 100)
        os.close(ready)
        with PeerClient.connect(store, settings, start=False) as client:
            time.sleep(1.0)
            assert child.poll() is None
            with PeerClient.connect(store, settings, start=False, keeps_alive=False) as looker:
                assert looker.status().clients == 1
                client.close()
                assert child.wait(10) == 0
        assert not answers(store.id)
        assert not socket_path(store.id).exists()


def test_a_request_ends_with_the_program_that_asked(tmp_path: Path) -> None:
    """A fetch that can never end is dropped when its asker is killed; the peer answers others all the while."""
    world, publisher = make_world(), Publisher.fresh()
    with Store.open(settings_at(tmp_path / "a").store) as held:
        world.publish_small(held)
        held.add_manifest(world.manifest)
        held.pin(world.manifest)
        held.put_name_record(publisher.sign(world))
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            found = client.resolve(Ticket(publisher.name(), (seed.address,)), 20)
            code = (
                "import sys\nfrom pathlib import Path\nfrom dhtdata.control import PeerClient\n"
                "from dhtdata.digest import Digest\nfrom dhtdata.store import Store\n"
                "from tests.peer.processes import settings_at\nsettings = settings_at(Path(sys.argv[1]))\n"
                "with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=True) as client:\n"
                "    manifest = Digest.parse(sys.argv[2])\n"
                "    client.fetch_dataset(manifest, on_progress=lambda seen: print(seen, flush=True))\n"
            )
            asker = subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "b"), str(found.manifest)],
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            assert asker.stdout is not None
            assert asker.stdout.readline().startswith(b"Progress")
            first = client.status().pid
            until(lambda: client.status().clients == 2)
            asker.kill()
            asker.wait()
            asker.stdout.close()
            until(lambda: client.status().clients == 1)
            assert client.status().pid == first
            shard = world.shards[0]
            with pytest.raises(NotFoundError, match="did not come within 1 s: providers known .*: 1, "):
                client.ensure_blocks(found.contents, shard.digest, shard.table_digest, [1], 1.0)


def test_a_lock_is_exclusive_and_a_forked_child_gives_its_copy_up(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / PEER_LOCK), FileLock(tmp_path / PEER_LOCK)
    assert lock.try_acquire()
    assert not other.try_acquire()
    assert not other.acquire(0.05)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    lock.release()
    assert other.acquire(5.0)
    other.release()
    os.close(go)
    os.waitpid(pid, 0)


def test_a_program_that_waits_for_the_election_finds_the_winner(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, settings):
        election = FileLock(settings.store / ELECTION_LOCK)
        assert election.try_acquire()
        found: list[int] = []

        def late() -> None:
            with PeerClient.connect(store, settings, start=True) as client:
                found.append(client.status().pid)

        waiting = threading.Thread(target=late)
        waiting.start()
        election.release()
        waiting.join()
        with PeerClient.connect(store, settings, start=False) as client:
            assert found == [client.status().pid]


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        broken = Settings(home=tmp_path / "home", store=store.path, listen="192.0.2.1")
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
            PeerClient.connect(store, broken, start=True)


def test_settings_of_another_store_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "one") as store, pytest.raises(ConfigError, match="another|speak of"):
        PeerClient.connect(store, settings_at(tmp_path), start=False)


def test_blobs_and_blocks_come_by_digest(tmp_path: Path) -> None:
    world, publisher = make_world(9), Publisher.fresh()
    with Store.open(settings_at(tmp_path / "a").store) as held:
        world.publish(held)
        held.put_name_record(publisher.sign(world))
    with seeding(settings_at(tmp_path / "a")) as seed, opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as client:
            found = client.resolve(Ticket(world.manifest, (seed.address,)), 20)
            table = world.shards[0].table_digest
            client.fetch_blobs(found.contents, [(table, 1 << 18)])
            assert store.has(table)
            with pytest.raises(NotFoundError, match="none of"):
                client.fetch_blobs(found.contents, [(Digest.of(b"?"), 100)], 10)
            shard = world.shards[1]
            some = client.ensure_blocks(found.contents, shard.digest, shard.table_digest, [2, 3], 20)
            assert not some.complete
            block = shard.table.blocks[2]
            end = block.offset + block.length
            assert Path(some.path).read_bytes()[block.offset : end] == shard.body[block.offset : end]
            every = client.ensure_blocks(found.contents, shard.digest, shard.table_digest, [], 20)
            assert every.complete
            assert Path(every.path) == store.path_of(shard.digest)


def test_a_peer_that_hangs_is_named_by_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_HANDSHAKE_S", 0.2)
    with Store.open(settings_at(tmp_path).store) as store, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(socket_path(store.id)))
        silent.listen()
        try:
            with pytest.raises(PeerError, match=rf"process {os.getpid()}\).*does not answer.*kill"):
                PeerClient.connect(store, settings_at(tmp_path), start=True)
        finally:
            socket_path(store.id).unlink()


def test_something_in_the_place_of_the_socket_is_named(tmp_path: Path) -> None:
    with Store.open(settings_at(tmp_path).store) as store:
        path = socket_path(store.id)
        path.mkdir()
        try:
            with pytest.raises(ConfigError, match=re.escape(str(path))):
                PeerClient.connect(store, settings_at(tmp_path), start=True)
        finally:
            path.rmdir()


def test_a_limit_too_small_for_a_dataset_is_refused_with_the_right_number_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    world = make_world(31, shards=4)
    total = sum(len(shard.body) for shard in world.shards)
    with Store.open(settings_at(tmp_path / "a").store) as store:
        world.publish(store)
    limit = total // 2
    with (
        seeding(settings_at(tmp_path / "a")) as seed,
        opened(tmp_path / "b", cache_limit=limit) as (store, settings),
        PeerClient.connect(store, settings, start=True) as client,
    ):
        found = client.resolve(Ticket(world.manifest, (seed.address,)), 20)
        with pytest.raises(StoreError, match=f"limit of {limit} bytes is too small") as refusal:
            client.fetch_dataset(found.manifest)
        needed = int(str(refusal.value).partition("at least ")[2].split()[0])
        assert total <= needed < total + 100_000
        assert not any(store.has(shard.digest) for shard in world.shards)
        client.stop()
    with (
        seeding(settings_at(tmp_path / "a")) as seed,
        opened(tmp_path / "b", cache_limit=needed + 10_000) as (store, settings),
        PeerClient.connect(store, settings, start=True) as client,
    ):
        client.resolve(Ticket(world.manifest, (seed.address,)), 20)
        client.fetch_dataset(found.manifest)
        assert world.held_by(store)
