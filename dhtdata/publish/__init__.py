"""Publishing: rows in, verified blobs and a signed name out.

Write order is law: shards and their block tables, then indexes, row ranges and statistics, each durable before the next
kind; then contents, manifest, its listing and pin, and last the name. Whatever stops a publish, nothing half-done is
visible: what is missing is not listed, and no name leads to it. A second run finds the finished shards by their digests
and does not write them again.

Modules, lowest first: ``destination`` (the store, or nothing in a dry run), ``pending`` (rows that wait for their
block to be full), ``shards`` (blocks to shards of one group), ``splits`` (one pass over the rows of a split),
``version`` (manifest, name), ``dataset`` (`publish`).
"""

from __future__ import annotations

from dhtdata.publish.dataset import Published, publish
from dhtdata.publish.splits import Progress

__all__ = ["Progress", "Published", "publish"]
