"""What peers do among hostile or broken ones, on real sockets and with the peer in a process of its own.

One module per question, each with ``measure(quick, seed) -> Result``, which runs alone, too:
``python -m benchmarks.hostile_real.providers [--quick] [--seed N]``.

| module | question |
|---|---|
| ``providers`` | eight providers of which two are honest: how soon is all there, what is wasted, who is banned |
| ``answers`` | does a byte of 100,000 malicious answers get in, does one of them break or bloat the fetching peer |
| ``crashes`` | is anything fetched twice by a peer that is killed at random moments |
| ``slow`` | what is left for honest clients of a seed that 500 slow or half-open connections sit on |

Helpers: ``worlds`` makes datasets without Arrow; ``peers`` starts seeds and peers as the commands do; modules named
``…_worker`` run in processes of their own.
"""
