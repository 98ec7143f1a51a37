from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError, PeerError
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.transfer.folders import FolderConnection, read_range, read_whole

BODY = random.Random(7).randbytes(100_000)
DIGEST = Digest.of(BODY)
PATH = f"/v1/blobs/{DIGEST}"
OTHER = f"/v1/blobs/{Digest.of(b'other')}"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a mirror")
    (folder / "v1" / "blobs").mkdir(parents=True)
    (folder / "v1" / "blobs" / str(DIGEST)).write_bytes(BODY)
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def seed(mirror: Path) -> WebSeed:
    return WebSeed.parse(mirror.as_uri(), named=True)


@pytest.fixture
def connection(seed: WebSeed) -> Iterator[FolderConnection]:
    made = FolderConnection(seed)
    yield made
    made.close()


@settings(deadline=None)
@given(data=st.data())
def test_ranges_are_slices_however_they_are_read(seed: WebSeed, data: st.DataObject) -> None:
    made = FolderConnection(seed)
    try:
        for _ in range(3):
            first = data.draw(st.integers(0, len(BODY)))
            length = data.draw(st.integers(0, len(BODY) - first))
            got = bytearray(length)
            made.open(PATH, first, length, {"If-Match": "x"})
            done = 0
            while done < length:
                step = data.draw(st.integers(1, length - done))
                made.read_into(memoryview(got)[done : done + step])
                done += step
            assert got == BODY[first : first + length] == read_range(seed, PATH, first, length)
    finally:
        made.close()
    assert read_whole(seed, PATH, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("first", "length"), [(0, len(BODY) + 1), (len(BODY), 1), (len(BODY) + 5, 0), (-1, 2), (1 << 70, 1)]
)
def test_a_range_that_is_not_there_is_not_found(seed: WebSeed, first: int, length: int) -> None:
    made = FolderConnection(seed)
    with pytest.raises(NotFoundError, match="has 100000 bytes"):
        made.open(PATH, first, length)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/secret",
        "secret",
        "/v1/blobs/",
        f"/v1/blobs/{str(DIGEST).upper()}",
        f"/v1/blobs/../blobs/{DIGEST}",
        f"/v1/blobs/{DIGEST}/",
        f"/v1/blobs/{DIGEST}\n",
        f"/v1/blobs/{DIGEST}?since=1",
        f"/v1/blobs/{DIGEST}.zst",
        f"/v1/blobs/{'..' * 32}",
        "/v1/names/../../secret",
        f"/v1/names/{'a' * 52}/../../../secret",
        f"/v1/names/{'a' * 52}/..",
        f"/v1/names/{'a' * 52}/.hidden",
        f"/v1/names/{'a' * 52}/{'x' * 64}",
        f"/v1/have/{'٣' * 64}",
        "/v1/blobs/" + "0" * 63 + "\0",
    ],
)
def test_only_paths_of_the_layout_touch_the_disk(seed: WebSeed, path: str) -> None:
    with pytest.raises(NotFoundError, match="is not in the layout of a mirror"):
        read_whole(seed, path, 1 << 20)
    with pytest.raises(NotFoundError, match="is not in the layout of a mirror"):
        FolderConnection(seed).open(path, 0, 1)


def test_what_is_not_there_is_not_found(seed: WebSeed, tmp_path: Path) -> None:
    gone = WebSeed.parse((tmp_path / "gone").as_uri(), named=True)
    (tmp_path / "file").write_bytes(b"")
    file = WebSeed.parse((tmp_path / "file").as_uri(), named=True)
    for one in (seed, gone, file):
        with pytest.raises(NotFoundError, match="not there"):
            read_whole(one, OTHER, 10)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    blobs = tmp_path / "v1" / "blobs"
    blobs.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(BODY)
    names = [str(Digest.of(bytes([i]))) for i in range(3)]
    (blobs / names[0]).symlink_to(tmp_path / "secret")
    (blobs / names[1]).mkdir()
    os.mkfifo(blobs / names[2])
    seed = WebSeed.parse(tmp_path.as_uri(), named=True)
    for name in names:
        with pytest.raises(PeerError):
            read_whole(seed, f"/v1/blobs/{name}", 1 << 20)
        with pytest.raises(PeerError):
            read_range(seed, f"/v1/blobs/{name}", 0, 1)


def test_a_folder_that_cannot_be_read_is_one_peer_that_failed(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    blobs = tmp_path / "v1" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / str(DIGEST)).write_bytes(BODY)
    (blobs / str(DIGEST)).chmod(0)
    with pytest.raises(PeerError, match="cannot be read"):
        read_whole(WebSeed.parse(tmp_path.as_uri(), named=True), PATH, 1 << 20)


def test_a_small_file_that_is_large_is_not_read(seed: WebSeed) -> None:
    with pytest.raises(PeerError, match="has 100000 bytes of at most 99999"):
        read_whole(seed, PATH, 99_999)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    blobs = tmp_path / "v1" / "blobs"
    blobs.mkdir(parents=True)
    file = blobs / str(DIGEST)
    file.write_bytes(BODY)
    made = FolderConnection(WebSeed.parse(tmp_path.as_uri(), named=True))
    made.open(PATH, 0, len(BODY))
    made.read_into(memoryview(bytearray(10)))
    os.truncate(file, 20)
    with pytest.raises(PeerError, match="ends before its end"):
        made.read_into(memoryview(bytearray(50)))
    made.close()


def test_more_than_was_asked_for_is_not_read(connection: FolderConnection) -> None:
    with pytest.raises(PeerError, match="more bytes are read than were asked for"):
        connection.read_into(memoryview(bytearray(1)))
    connection.open(PATH, 5, 10)
    connection.read_into(memoryview(bytearray(4)))
    with pytest.raises(PeerError, match="more bytes are read than were asked for"):
        connection.read_into(memoryview(bytearray(7)))


def test_another_thread_may_abort_a_connection(connection: FolderConnection) -> None:
    connection.open(PATH, 0, len(BODY))
    other = threading.Thread(target=connection.abort)
    other.start()
    other.join()
    with pytest.raises(PeerError, match="given up"):
        connection.read_into(memoryview(bytearray(10)))


def test_nothing_stays_open(seed: WebSeed) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    made = FolderConnection(seed)
    for _ in range(20):
        made.open(PATH, 0, 10)
        with pytest.raises(NotFoundError):
            made.open(OTHER, 0, 10)
        with pytest.raises(NotFoundError):
            made.open(PATH, 0, 1 << 40)
        read_whole(seed, PATH, 1 << 20)
    made.open(PATH, 0, 10)
    made.close()
    made.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_web_server_is_no_folder() -> None:
    seed = WebSeed.parse("https://data.example.org")
    with pytest.raises(PeerError, match="is not a folder"):
        FolderConnection(seed)
    with pytest.raises(PeerError, match="is not a folder"):
        read_whole(seed, PATH, 10)
