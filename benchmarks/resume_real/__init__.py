"""Interrupted, moved and crowded training runs, in real processes on loopback addresses.

One module per question, each with ``measure(quick, seed) -> Result``, which runs alone, too:
``python -m benchmarks.resume_real.kills [--quick] [--seed N]``.

| module | question |
|---|---|
| ``seek`` | what does it cost to begin in the middle of 10^9 rows |
| ``node`` | do 8 ranks with 4 workers each download a shard once, and what memory does a worker take |
| ``kills`` | are rows lost or repeated when anything is killed at any step |
| ``elastic`` | are global batches the same when ranks and workers change |
| ``race`` | is there exactly one peer when 8 processes want one, and does training survive its owner |
| ``epochs`` | does anything grow over 100 epochs |

``trainer``, ``ranks_worker``, ``racer`` and ``epochs_worker`` are the processes that they start, ``small`` makes the
dataset that they read.
"""
