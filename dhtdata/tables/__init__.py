"""Tables: canonical Arrow shards and what is computed from them. Between source files and blobs; no network.

Modules of the shard itself, lowest first: ``parameters`` and ``schema`` (types and their JSON), ``sizes`` (stored bytes
per row), ``forms`` (rebuilding nested arrays), ``canonical`` (source values to stored values), ``layout`` (canonical
buffers), ``ipc`` (blocks of a shard), ``logical`` (stored values to logical values), ``reader`` (blocks back to
batches), ``check`` (a stranger's shard).
"""
