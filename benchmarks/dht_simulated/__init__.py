"""What the DHT does at sizes and under attacks that no test machine has: simulated, in virtual time.

Real nodes, whole and unchanged, in `tests.simulation`: datagrams are encoded, signed (by a cheap stand-in), delayed,
lost and decoded. One module per question, each with ``measure(quick, seed) -> Result`` that runs on its own and gives
the same answer for the same seed:

| module | question |
|---|---|
| ``wan`` | how soon is the first provider found over the Internet with 30% dead, and how soon by the stock package |
| ``loss`` | what do 20% loss and 5% reordering cost |
| ``growth`` | how do calls a look-up and the size of tables grow from 100 to 10,000 nodes |
| ``tiny`` | does a network of 1 to 50 nodes drop a shard key |
| ``vanish`` | is everything found when half of all nodes vanish at once |
| ``churn`` | and in a day in which nodes stay for an hour |
| ``sybils`` | and when up to 100 hostile nodes stand nearest to the key |
| ``eclipse`` | how much of an honest table do 1,000 hostile identifiers on 5 addresses get in a day |

By hand: ``python -m benchmarks.dht_simulated wan --quick``.
"""
