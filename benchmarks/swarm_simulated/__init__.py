"""Does a crowd spread a dataset by itself? A thousand peers in virtual time, each driven by the real planner.

`dhtdata.transfer.planner` and all below it are the product's own; simulated is what surrounds them:

| module | simulates |
|---|---|
| ``engine`` | time; uplinks and downlinks that transfers share; upload slots with a bounded queue, fair by requester |
| ``peers`` | one peer: asks what its planner says, polls have-maps of a bounded number of neighbours, stores blocks |
| ``swarm`` | kinds of links, churn, the lower bound, what came of it |

The size of the dataset matters: in the first seconds few have anything to give, and at the end those who came late are
alone. 1,000 peers, seed of chance 1: 256 MiB took 1.37 times the lower bound with 2.5 copies sent by the seed, 128 MiB
1.57 times with 3.3 copies, which is over both bars. The constants of the planner were tuned on seeds 1 and 2 with 8 to
250 peers.

By hand: ``python -m benchmarks.swarm_simulated --quick``.
"""
