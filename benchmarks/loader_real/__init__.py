"""How fast training loops get their rows, beside what people use instead and what the machine itself could do.

One module per question, each with ``measure(quick, seed) -> Result``, which runs alone, too:
``scripts/bench loader`` sets up the peers first, then
``DHTDATA_BASELINES_PYTHON=.venv-baselines/bin/python python -m benchmarks.loader_real.tokens [--quick] [--seed N]``.

| module | question |
|---|---|
| ``tokens`` | shuffled batches of 64 x 512 int32, in one process, with threads, with worker processes |
| ``objects`` | 10 KB binaries and texts as Python objects, in batches and row by row |
| ``floats`` | many small columns in batches of 1,024 |
| ``warm`` | these three, one after another |
| ``cold`` | an epoch that is fetched while it is trained on |
| ``nodes`` | what each of eight nodes fetches |

The first three are contests (`contest`): `our_loaders` and `peer_loaders` are processes that hold loaders and run
one for a while whenever they are asked (`stopwatch`), over the same rows (`rows`).
"""
