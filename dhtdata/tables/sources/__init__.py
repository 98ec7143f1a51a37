"""Sources: whatever a user has rows in, as record batches of bounded size with one schema.

Modules, lowest first: ``reading`` (what a reader is, errors), ``files`` (which files are meant), ``parquet``, ``ipc``,
``text`` (CSV and JSON lines), ``folder`` (one row a file), ``values`` and ``objects`` (Python), ``opened`` (all of them
behind `open_source`, and the schema on which several agree).
"""

from __future__ import annotations

from dhtdata.tables.sources.opened import OpenedSource, Rows, agreed_schema, open_source

__all__ = ["OpenedSource", "Rows", "agreed_schema", "open_source"]
