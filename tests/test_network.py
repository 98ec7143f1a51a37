"""Networks: codes that members alone can make, and the file that holds the secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import ConfigError, FormatError
from dhtdata.network import PUBLIC, Network, load_network, new_network, save_network


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
