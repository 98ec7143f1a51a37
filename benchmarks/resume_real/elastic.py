"""Are global batches the same when a run changes its ranks and workers in the middle of an epoch?

960 rows at a global batch of 48 are 20 batches. One epoch is read by one rank without workers; another by 2 ranks
without workers for 7 batches, then from the saved state by 8 ranks with 4 workers each for 6, then by 3 ranks with 1
worker each to the end: each rank a process with its own ``rank`` and ``world_size``, all of them on one machine whose
store is empty at first. A global batch is what all ranks together have at one step, in the order of ranks, and has to
be the same, row by row.
"""

from __future__ import annotations

from itertools import chain

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.peers import Machine, seed, world
from benchmarks.resume_real.ranks import run_ranks
from benchmarks.resume_real.small import no_peer_after, publish_small

ROWS, SHARD_ROWS, GLOBAL_BATCH = 960, 30, 48
CREWS = ((2, 0, 7), (8, 4, 6), (3, 1, 0))
"""Ranks, workers of each, batches (0: those that are left)."""
QUICK_CREWS = ((2, 0, 7), (8, 1, 6), (3, 1, 0))


def measure(quick: bool, seed_number: int) -> Result:
    batches: list[list[int]] = []
    states = 0
    with world() as folder:
        giver, taker = Machine(folder / "giver", "127.0.0.2"), Machine(folder / "taker", "127.0.0.3")
        dataset = publish_small(giver, ROWS, SHARD_ROWS)
        with seed(giver, dataset) as peer, no_peer_after(taker):
            state = None
            for ranks, workers, steps in QUICK_CREWS if quick else CREWS:
                said = run_ranks(
                    taker, peer.ticket(dataset), ranks, workers,
                    global_batch=GLOBAL_BATCH, seed=seed_number, state=state, steps=steps,
                )  # fmt: skip
                batches += [list(chain(*parts)) for parts in zip(*(each["batches"] for each in said), strict=True)]
                state = said[0]["state"]
                states += sum(each["state"] != state for each in said)
            whole = run_ranks(taker, peer.ticket(dataset), 1, 0, global_batch=GLOBAL_BATCH, seed=seed_number)[0]
    differing = sum(one != other for one, other in zip(batches, whole["batches"], strict=True))
    return Result(
        figures={"elastic_batches": len(batches), "elastic_rows": len(set(chain(*batches)))},
        checks=[
            Check("elastic_batches_that_differ", differing, "==", 0),
            Check("elastic_states_that_differ", states, "==", 0),
            Check("elastic_rows_missing", ROWS - len(set(chain(*batches))), "==", 0),
        ],
    )


if __name__ == "__main__":
    alone(measure)
