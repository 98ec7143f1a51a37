"""What the DHT does on real sockets of this machine, with real signatures.

One module per question, each with ``measure(quick, seed) -> Result``, which runs alone, too:
``python -m benchmarks.dht_real.lookup [--quick] [--seed N]``.

| module | question |
|---|---|
| ``lookup`` | how soon is a provider found, all alive and 30% dead, beside the stock package |
| ``announce`` | what do 15,000 keys cost, and do the right nodes hold them |
| ``amplification`` | how many bytes does an address get that proved nothing |
| ``flood`` | what do 20,000 spoofed datagrams a second cost, and what is left for others |
| ``mutations`` | does anything break under 1,000,000 mutated datagrams |
| ``stores`` | do 200,000 hostile stores break the memory bound, or push honest records out |
| ``forgeries`` | is anything forged, replayed, expired or oversized kept or believed |
| ``stranger`` | what does a stranger get from a private network |
| ``cost`` | what does one node cost that does nothing |

Helpers: ``swarm`` starts nodes, ours and stock's; ``outsider`` speaks the protocol by hand; ``process`` and the modules
named ``…_worker`` run parts in processes of their own, where those would disturb the measurement.
"""
