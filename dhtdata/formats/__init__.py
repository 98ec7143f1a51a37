"""Formats: what goes to disk and wire, and nothing else. Pure; no I/O.

| file | format | bytes |
|---|---|---|
| ``codec`` | the one way in and out: size, then typed parse, then canonical form | (shared) |
| ``schema`` | column types as JSON | part of the contents |
| ``blocks`` | block table of a shard | msgpack |
| ``index`` | list of up to 4,096 shards; list of row ranges | msgpack |
| ``contents`` | schema, splits, groups, digests of indexes and row ranges | canonical JSON |
| ``manifest`` | contents, statistics, parent, licence, card, provenance; its digest is the version | canonical JSON |
| ``statistics`` | whole columns and per shard | canonical JSON and msgpack |
| ``records`` | signed values of the DHT | fixed header + msgpack |
| ``names`` | ``dhtdata://publisher/name@sequence`` | text |
| ``ticket`` | one pasteable string | base32 |

Every format carries a version and a signed, ignorable ``ext`` map of text to text. A reader refuses a version it does
not know and names it.
"""
