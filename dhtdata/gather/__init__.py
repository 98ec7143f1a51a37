"""Rows gathered by column out of mapped shards, in the formats that loops take.

| module | part |
|---|---|
| ``columns`` | what every Arrow type becomes in numpy, torch and Python |
| ``planes`` | this process's memory as arrays |
| ``chart`` | where the values of every block lie in it |
| ``texts`` | strings and binaries, made when they are handed out |
| ``ragged`` | lists of any length: padded, jagged |
| ``runs`` | what only Arrow reads, block by block |
| ``gatherer`` | rows gathered by these ways |
| ``weave`` | rows gathered from several datasets, put into the order of a mix |
| ``pictures`` | encoded images (door of ``PIL``) |
| ``leaving`` | rows on which something failed, told in the log |
| ``shaping`` | what ``collate`` and ``decode`` ask for |
| ``parcels`` | what a few steps take, handed out one by one |
"""
