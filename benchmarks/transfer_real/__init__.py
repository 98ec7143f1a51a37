"""What one peer's fetching takes, in real processes on loopback addresses, beside what the machine itself could do.

One module per question, each with ``measure(quick, seed) -> Result``, which runs alone, too:
``python -m benchmarks.transfer_real.one [--quick] [--seed N]``.

| module | question |
|---|---|
| ``one`` | how near the machine's limit does one provider fill a disk |
| ``latency`` | does a link of 200 ms stay full |
| ``packed`` | what does the packed form save at 100 Mbit/s |
| ``mount`` | how soon is the first batch of 1 TB there |
| ``memory`` | what does a peer among a hundred others cost, and does it grow |
"""
