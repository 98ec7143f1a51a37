"""One value of every format, and the ways to damage its bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats import records
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, decode_ranges, encode_ranges
from dhtdata.formats.manifest import Manifest, Provenance, Source
from dhtdata.formats.names import Name
from dhtdata.formats.records import (
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    Record,
    ShardClaims,
    Signed,
    Voucher,
    decode,
    shard_key,
    sign,
)
from dhtdata.formats.schema import Field
from dhtdata.formats.ticket import Ticket
from dhtdata.signing import SigningKey

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "formats"
ROOT, RELEASE, FRESHNESS, NODE = (SigningKey(bytes([number]) * 32) for number in range(1, 5))


def named(text: str) -> Digest:
    """The digest of a text stands for some blob's."""
    return Digest.of(text.encode())


BLOCK_TABLE = BlockTable.build([(136, 0, named("head")), (70_000, 12, named("batch")), (450, 0, named("footer"))])
INDEX = Index.build([ShardEntry(named(f"shard {i}"), named(f"table {i}"), 1_000 + i, 33_000_000 + i) for i in range(3)])
RANGES = (1_000, 900, 1_103)
_TEXTS = Field(name="item", type="dictionary", parameters={"index": "int8"}, children=(Field(name="", type="string"),))
COLUMNS = (
    Field(name="id", type="int64", nullable=False),
    Field(name="tags", type="list", children=(_TEXTS,), metadata={"unit": "none"}),
    Field(name="when", type="timestamp", parameters={"timezone": "UTC", "unit": "us"}),
)
CONTENTS = Contents(
    version=1,
    cutting=1,
    columns=COLUMNS,
    groups=(Group(columns=("id", "when")), Group(columns=("tags",))),
    splits=tuple(
        Split(
            name=name,
            rows=3_003,
            ranges=named(f"{name} ranges"),
            groups=tuple(
                GroupShards(indexes=(named(f"{name} index {i}"),), shards=3, bytes=99_000_003) for i in range(2)
            ),
        )
        for name in ("train", "test")
    ),
    metadata={"pandas": "{}"},
)
MANIFEST = Manifest(
    version=1,
    name="wiki",
    contents=named("contents"),
    statistics=named("statistics"),
    parent=named("parent"),
    licence="CC-BY-4.0",
    card="# Wiki\nÄrticles.",
    provenance=Provenance(files=2, sources=(Source(name="a.parquet", bytes=12),), url="https://example.org/"),
)
DELEGATION = Delegation(root=ROOT.public, number=1, release=RELEASE.public, freshness=FRESHNESS.public).signed(ROOT)
_UNVOUCHED = NameRecord(
    delegation=DELEGATION,
    name="wiki",
    sequence=7,
    manifest=named("manifest"),
    fresh_until=1_800_000_000,
    parent=named("parent"),
)
NAME_RECORD = msgspec.structs.replace(_UNVOUCHED, voucher=Voucher.sign(FRESHNESS, _UNVOUCHED, 1_900_000_000))
PEER_RECORD = PeerRecord(
    addresses=(AddressWire(ip=bytes([192, 0, 2, 1]), port=8_470), AddressWire.of(Address("2001:db8::1", 443))),
    sequence=3,
    expires=1_800_000_000,
)
PROVIDER_CLAIM = ProviderClaim(contents=named("contents"), seed=True, sequence=5, expires=1_800_000_000)
SHARD_CLAIMS = ShardClaims(
    keys=b"".join(sorted(shard_key(named(f"shard {i}")) for i in range(42))), sequence=2, expires=1_800_000_000
)
SIGNED: dict[str, Signed] = {
    "name_record": sign(NAME_RECORD, RELEASE),
    "peer_record": sign(PEER_RECORD, NODE),
    "provider_claim": sign(PROVIDER_CLAIM, NODE),
    "shard_claims": sign(SHARD_CLAIMS, NODE),
}
TICKETS = {
    "ticket_of_name": Ticket(
        Name(ROOT.public, "wiki", 7), (Address("192.0.2.1", 8_470), Address("2001:db8::1", 443)), bytes(range(32))
    ),
    "ticket_of_manifest": Ticket(named("manifest"), (Address("127.0.0.1", 1),)),
}


@dataclass(frozen=True)
class Sample:
    """Bytes of one format, how to read them, and how to write again what was read."""

    data: bytes
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    json: bool

    def parsed(self) -> Any:
        """Maps, lists and scalars, without knowing the format."""
        return json.loads(self.data) if self.json else msgspec.msgpack.decode(self.data)

    def packed(self, tree: Any) -> bytes:
        """Canonical bytes of any tree."""
        if self.json:
            return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return msgspec.msgpack.encode(tree, order="sorted")

    def holds_or_refuses(self, data: bytes) -> bool:
        """Whether ``data`` were refused; if they were not, they must be the canonical form of what was read."""
        try:
            value = self.decode(data)
        except FormatError:
            return True
        if self.encode(value) != data:
            raise AssertionError(f"read, but not written alike: {data!r}")
        return False


def _record(kind: type[Record], signed: Signed) -> Sample:
    # Payloads are damaged under a right signature: whoever signs can write anything.
    number = records._NUMBERS[kind]

    def encode_under_signature(payload: bytes, key: SigningKey) -> bytes:
        head = bytes([number, records.VERSION]) + key.public
        return head + key.sign("dhtdata record", head + payload) + payload

    key = RELEASE if kind is NameRecord else NODE

    def decode_payload(payload: bytes) -> Signed:
        try:
            return decode(encode_under_signature(payload, key))
        except IntegrityError as failure:
            raise FormatError(f"inner signature: {failure}") from failure

    def payload(found: Signed) -> bytes:
        return found.data[records.HEADER_BYTES :]

    return Sample(payload(signed), decode_payload, payload, json=False)


SAMPLES: dict[str, Sample] = {
    "block_table": Sample(BLOCK_TABLE.encode(), BlockTable.decode, BlockTable.encode, json=False),
    "index": Sample(INDEX.encode(), Index.decode, Index.encode, json=False),
    "ranges": Sample(encode_ranges(RANGES), decode_ranges, encode_ranges, json=False),
    "contents": Sample(CONTENTS.encode(), Contents.decode, Contents.encode, json=True),
    "manifest": Sample(MANIFEST.encode(), Manifest.decode, Manifest.encode, json=True),
} | {name: _record(type(signed.record), signed) for name, signed in SIGNED.items()}

JUNK: list[Any] = [None, True, False, 0, -1, 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1.5, 1e300]
JUNK += ["", "x" * 70, "\0", "é", [], [[]], {}, {"version": 2}, {"": []}]
HUGE = [1 << 64, 1 << 200, -(1 << 63) - 1, -(1 << 100)]


def nested(depth: int) -> Any:
    tree: Any = []
    for _ in range(depth):
        tree = [tree]
    return tree


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a tree, its own root first."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with one value exchanged."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def damaged(data: bytes, source: random.Random) -> bytes:
    """Bytes with one to three random edits: flips, cuts, repeats, insertions."""
    edited = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(edited) + 1)
        edit = source.randrange(6)
        if edit == 0 and at < len(edited):
            edited[at] ^= 1 << source.randrange(8)
        elif edit == 1:
            del edited[at:]
        elif edit == 2:
            edited[at:at] = source.randbytes(source.randint(1, 40))
        elif edit == 3:
            del edited[at : at + source.randint(1, 40)]
        elif edit == 4:
            edited[at:at] = edited[at : at + source.randint(1, 40)]
        elif at < len(edited):
            edited[at] = source.randrange(256)
    return bytes(edited)
