from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import StoreError
from dhtdata.store import Store, filesystem
from dhtdata.store.filesystem import magic_of, refuse_network, require_room, store_errors, write_all, write_at

KERNEL_NAMES = {"/proc": 0x9FA0, "/sys": 0x62656572}
NETWORK = {0x6969: "NFS", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS", 0xFF534D42: "CIFS", 0x65735546: "FUSE"}


@pytest.mark.parametrize("folder", KERNEL_NAMES)
def test_the_magic_number_is_the_kernels(folder: str) -> None:
    assert magic_of(Path(folder)) == KERNEL_NAMES[folder]


def test_a_path_that_is_not_there_has_no_magic_number(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        magic_of(tmp_path / "nowhere")


def test_a_local_folder_is_accepted(tmp_path: Path) -> None:
    refuse_network(tmp_path)


@pytest.mark.parametrize("magic", NETWORK)
def test_a_store_on_a_network_file_system_is_refused_with_a_local_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(scratch))
    real = magic_of
    monkeypatch.setattr(filesystem, "magic_of", lambda path: real(path) if path == scratch else magic)
    with pytest.raises(StoreError, match=f"is on {NETWORK[magic]}.*{scratch}/dhtdata"):
        Store.open(tmp_path / "home")
    assert not list((tmp_path / "home").iterdir())


def test_without_any_local_folder_a_local_disk_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "magic_of", lambda path: 0x6969)
    with pytest.raises(StoreError, match="use a folder on a local disk"):
        Store.open(tmp_path)


def test_other_systems_have_no_magic_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert magic_of(tmp_path) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_path_and_the_bytes(number: int) -> None:
    with (
        pytest.raises(StoreError, match="/some/where: no room for 123 more bytes"),
        store_errors(Path("/some/where"), 123),
    ):
        raise OSError(number, os.strerror(number))


def test_any_other_failure_names_the_path_and_the_reason() -> None:
    with pytest.raises(StoreError, match="/some/where: Read-only file system"), store_errors(Path("/some/where")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@given(parts=st.lists(st.binary(max_size=200_000), max_size=5))
def test_a_pipe_that_takes_a_little_at_a_time_gets_every_byte_in_order(parts: list[bytes]) -> None:
    reading, writing = os.pipe()
    received = bytearray()

    def drain() -> None:
        while piece := os.read(reading, 50_000):
            received.extend(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        os.set_blocking(writing, True)
        write_all(writing, [memoryview(part) for part in parts])
    finally:
        os.close(writing)
        reader.join()
        os.close(reading)
    assert bytes(received) == b"".join(parts)


def test_a_write_that_is_cut_short_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_writev, real_pwrite = os.writev, os.pwrite

    def short_writev(descriptor: int, parts: list[memoryview]) -> int:
        return real_writev(descriptor, [parts[0][:3]])

    def short_pwrite(descriptor: int, part: memoryview, offset: int) -> int:
        return real_pwrite(descriptor, part[:3], offset)

    monkeypatch.setattr("os.writev", short_writev)
    monkeypatch.setattr("os.pwrite", short_pwrite)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_all(descriptor, [memoryview(b"abcdefgh"), memoryview(b""), memoryview(b"ij")])
    write_at(descriptor, memoryview(b"XYZUV"), 2)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"abXYZUVhij"


def test_a_store_where_a_file_is_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        Store.open(tmp_path / "file")


def test_a_store_below_folders_that_are_not_there_is_made(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b" / "c") as store:
        assert store.path == tmp_path / "a" / "b" / "c"
        assert store.has(store.put(b"x"))


def test_the_last_room_of_a_disk_is_kept_for_the_index(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    require_room(tmp_path, 1)
    with pytest.raises(StoreError, match=rf"{tmp_path}: no room for {free} more bytes .* kept for the index"):
        require_room(tmp_path, free)
