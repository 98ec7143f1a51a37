"""Networks: codes that members alone can make, and the file that holds the secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import ConfigError, FormatError, StoreError
from dhtdata.network import (
    PUBLIC,
    Network,
    check_store,
    keep_network,
    load_network,
    network_at,
    network_of_store,
    new_network,
    save_network,
)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_code_belongs_to_one_secret_and_one_message(message: bytes, other: bytes) -> None:
    ours, theirs = Network(bytes(32)), Network(bytes([1]) * 32)
    code = ours.code(message)
    assert ours.member_made(code, message) and not theirs.member_made(code, message)
    assert ours.member_made(code, other) == (message == other)
    assert not ours.member_made(PUBLIC.code(message), message)


def test_a_saved_network_comes_back_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "lab.network"
    network = new_network()
    save_network(path, network)
    assert load_network(path) == network and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="stays as it is"):
        save_network(path, new_network())
    assert load_network(path).fingerprint == network.fingerprint != PUBLIC.fingerprint
    assert network.secret is not None and network.secret.hex() not in repr(network)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.network"
    save_network(path, new_network())
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_network(path)


@pytest.mark.parametrize("text", ["", "dhtdata-network-1", "dhtdata-network-1 abcd", f"other {'00' * 32}", "\xff" * 90])
def test_a_file_without_a_secret_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lab.network"
    path.write_text(text)
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError, match=r"lab\.network holds no secret"):
        load_network(path)
    with pytest.raises(ConfigError, match="no network file"):
        load_network(tmp_path / "missing")


def test_a_secret_has_32_bytes() -> None:
    with pytest.raises(FormatError, match="32 bytes"):
        Network(b"short")


def test_without_a_file_the_network_is_the_public_one(tmp_path: Path) -> None:
    network = new_network()
    save_network(tmp_path / "lab.network", network)
    assert network_at(None) is PUBLIC and network_at(tmp_path / "lab.network") == network


def test_a_kept_network_has_one_file_that_is_made_once(tmp_path: Path) -> None:
    folder, network = tmp_path / "store" / "networks", new_network()
    path = keep_network(folder, network)
    made = path.stat()
    assert keep_network(folder, network) == path and path.stat().st_ino == made.st_ino
    assert load_network(path) == network and folder.stat().st_mode & 0o777 == 0o700
    other = keep_network(folder, new_network())
    assert sorted(folder.iterdir()) == sorted([path, other])
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keep_network(folder, network)


def test_a_network_that_cannot_be_kept_says_where(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StoreError, match="networks"):
        keep_network(tmp_path / "store" / "networks", new_network())


def test_a_store_that_was_private_does_not_become_public(tmp_path: Path) -> None:
    lab, other = tmp_path / "lab.network", tmp_path / "other.network"
    for path in (lab, other):
        save_network(path, new_network())
    store = tmp_path / "store"
    store.mkdir()
    assert network_of_store(store, None, empty=False) == PUBLIC
    private = network_of_store(store, lab, empty=False)
    assert network_of_store(store, lab, empty=False) == private == load_network(lab)
    for wrong in (None, other):
        with pytest.raises(ConfigError, match=f"belongs to the private network {private.fingerprint}.*--network"):
            network_of_store(store, wrong, empty=False)


def test_a_missing_folder_and_a_file_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder .*nowhere.* make it first"):
        save_network(tmp_path / "nowhere" / "lab.network", new_network())
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n1,2\n")
    rows.chmod(0o644)
    with pytest.raises(ConfigError, match="holds no secret of a network"):
        load_network(rows)


def test_an_empty_store_may_change_its_network(tmp_path: Path) -> None:
    lab, mistaken = tmp_path / "lab.network", tmp_path / "mistaken.network"
    for path in (lab, mistaken):
        save_network(path, new_network())
    store = tmp_path / "store"
    store.mkdir()
    network_of_store(store, mistaken, empty=True)
    with pytest.raises(ConfigError, match="belongs to the private network"):
        check_store(store, load_network(lab))
    for changed in (lab, None, lab):
        right = network_of_store(store, changed, empty=True)
        check_store(store, right)
        assert network_of_store(store, changed, empty=False) == right
