"""Contents: what a dataset *is*: schema, column groups, splits, and the digests of their indexes and row ranges.

Canonical JSON, at most 256 KB. Its digest is what providers announce: a new licence or a mended card changes the
manifest alone, so the swarm stays one. Groups are listed once; each split lists, for every group in that order, the
digests of its indexes. Within a split every group has the same rows.

``cutting`` is the version of the fingerprint that chose block and shard ends (``dhtdata.tables.cutting``): a later
version of a dataset is cut the same way, so that unchanged rows stay in unchanged blocks.

Shards have an *ordinal*: splits in order, within them groups in order, within them indexes and entries in order. The
have-map speaks of ordinals.
"""

from __future__ import annotations

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_SHARD_BYTES
from dhtdata.formats.codec import Format, check_ext, check_version, decode_json, encode_json
from dhtdata.formats.index import MAX_ROWS, MAX_SHARDS
from dhtdata.formats.schema import Field, check_schema

VERSION = 1
MAX_CONTENTS_BYTES = 256_000
MAX_SPLITS = 256
MAX_SPLIT_NAME = 64


class Group(Format, frozen=True):
    """Columns that are stored together."""

    columns: tuple[str, ...]


class GroupShards(Format, frozen=True):
    """Where one split's rows of one group are: indexes in row order, shards and bytes in all."""

    indexes: tuple[Digest, ...]
    shards: int
    bytes: int


class Split(Format, frozen=True):
    """A named run of rows. ``groups`` is parallel to the contents' groups."""

    name: str
    rows: int
    ranges: Digest
    groups: tuple[GroupShards, ...]


class Contents(Format, frozen=True):
    version: int
    cutting: int
    columns: tuple[Field, ...]
    groups: tuple[Group, ...]
    splits: tuple[Split, ...]
    metadata: dict[str, str] = {}
    ext: dict[str, str] = {}

    @property
    def row_count(self) -> int:
        return sum(split.rows for split in self.splits)

    @property
    def byte_count(self) -> int:
        return sum(group.bytes for split in self.splits for group in split.groups)

    @property
    def shard_count(self) -> int:
        return sum(group.shards for split in self.splits for group in split.groups)

    def encode(self) -> bytes:
        """Canonical bytes. FormatError if they would be refused by `decode`."""
        _check(self)
        data = encode_json(self)
        if len(data) > MAX_CONTENTS_BYTES:
            raise FormatError(f"contents of {len(data)} bytes, at most {MAX_CONTENTS_BYTES} are allowed: fewer columns")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Contents:
        contents = decode_json(data, cls, limit_bytes=MAX_CONTENTS_BYTES, what="contents")
        _check(contents)
        return contents


def _check(contents: Contents) -> None:
    what = "contents"
    check_version(contents, VERSION, what)
    check_ext(contents.ext, what)
    if contents.cutting < 1:
        raise FormatError(f"{what}: there is no version {contents.cutting} of the cutting")
    check_schema(contents.columns, what)
    grouped = [name for group in contents.groups for name in group.columns]
    if sorted(grouped) != sorted(field.name for field in contents.columns) or not all(
        g.columns for g in contents.groups
    ):
        raise FormatError(f"{what}: every column belongs to exactly one group, and no group is empty")
    names = [split.name for split in contents.splits]
    if not 1 <= len(names) <= MAX_SPLITS or len(set(names)) != len(names):
        raise FormatError(f"{what}: need 1 to {MAX_SPLITS} splits with names of their own")
    for split in contents.splits:
        _check_split(split, len(contents.groups), what)
    if contents.row_count > MAX_ROWS:
        raise FormatError(f"{what}: more rows than a dataset can have")


def _check_split(split: Split, group_count: int, what: str) -> None:
    if not 1 <= len(split.name) <= MAX_SPLIT_NAME or not split.name.isprintable() or "/" in split.name:
        raise FormatError(f"{what}: split name {split.name[:80]!r} is empty, too long or has odd characters")
    if split.rows < 1:
        raise FormatError(f"{what}: split {split.name!r} has no rows")
    if len(split.groups) != group_count:
        raise FormatError(f"{what}: split {split.name!r} lists {len(split.groups)} groups of {group_count}")
    for group in split.groups:
        needed = -(-group.shards // MAX_SHARDS)
        if group.shards < 1 or not 1 <= group.bytes <= group.shards * MAX_SHARD_BYTES or len(group.indexes) != needed:
            raise FormatError(
                f"{what}: split {split.name!r}: {len(group.indexes)} indexes and {group.bytes} bytes "
                f"for {group.shards} shards"
            )
