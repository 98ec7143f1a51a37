"""Crowds of real peers on loopback addresses, each a process of its own.

| module | question |
|---|---|
| ``crowd`` | how fast does one seed's dataset spread to 1, 4 and 8 peers, beside libtorrent |

``libtorrent_peer`` is run by the Python of the baselines, which has libtorrent and nothing of this project.
"""
