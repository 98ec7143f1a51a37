from __future__ import annotations

from pathlib import Path

import pytest

from dhtdata.formats.addresses import Address, Believed
from dhtdata.formats.names import Name
from dhtdata.peer.known import MAX_REMEMBERED, Known

OWN = Address("127.0.0.1", 1)
PEERS = [Address("127.0.0.1", port) for port in range(2, MAX_REMEMBERED + 20)]
NAME = Name(bytes(32), "world", 7)


def test_those_that_served_last_are_remembered_first(tmp_path: Path) -> None:
    known = Known(tmp_path, Believed([OWN]))
    known.load()
    for peer in [*PEERS, PEERS[30]]:
        known.remember(peer)
    known.follow(NAME)
    known.save()
    again = Known(tmp_path, Believed([OWN]))
    again.load()
    assert again.everybody() == known.everybody()
    assert len(again.everybody()) == MAX_REMEMBERED
    assert again.everybody()[:2] == [PEERS[30], PEERS[-1]]
    assert again.followed() == [Name(bytes(32), "world")]
    again.trust([PEERS[40], OWN])
    assert again.everybody()[:3] == [PEERS[40], OWN, PEERS[30]]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version":1,"peers":["nonsense"]}', b"\xff" * 100])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "peers.json").write_bytes(damage)
    known = Known(tmp_path, Believed([OWN]))
    known.load()
    assert known.everybody() == []
    known.remember(PEERS[0])
    known.save()
    again = Known(tmp_path, Believed([OWN]))
    again.load()
    assert again.everybody() == [PEERS[0]]
