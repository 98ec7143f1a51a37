"""Does a crowd spread a dataset by itself? A thousand peers in virtual time, each driven by the real planner.

`dhtdata.transfer.planner` and all below it are the product's own; simulated is what surrounds them:

| module | simulates |
|---|---|
| ``engine`` | time; uplinks and downlinks that transfers share; upload slots with a bounded queue, fair by requester |
| ``peers`` | one peer: asks what its planner says, polls have-maps of a bounded number of neighbours, stores blocks |
| ``swarm`` | kinds of links, churn, the lower bound, what came of it |

By hand: ``python -m benchmarks.swarm_simulated --quick``.
"""
