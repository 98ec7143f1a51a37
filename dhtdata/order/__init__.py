"""Order: which rows a training step takes. Pure, lazy, the same on every machine; no I/O, no clock.

From row ranges to a step, for one epoch with ``shuffle``:

1. **Pieces.** Row ranges are the unit (about 32 MiB each). One of more than `MAX_PIECE_ROWS` rows is cut into equal
   pieces, so that shuffling a window stays cheap when rows are tiny.
2. **Line.** The pieces, permuted, laid end to end: N rows.
3. **Lanes.** The line is cut into L runs of equal rows; the first ``N mod L`` lanes have one row more. A cut may fall
   inside a piece, which then belongs to two neighbours. Lanes follow nodes, so that a node touches its own bytes only.
4. **Windows.** A lane's pieces are taken ``window`` at a time, and rows are shuffled inside a window. The first window
   is taken in parts that ramp up: its pieces are cut into 32 slots each (about a block), the slots are permuted, and
   1, 4, 16, 64, ... of them make a window, so that the first batch needs one block rather than a whole window.
5. **Epoch sequence.** Lanes interleave: position p is row ``p div L`` of lane ``p mod L``.
6. **Global batch.** Positions ``[p, p + G)``, stably sorted by lane. Rank r of W takes the r-th of W equal slices; with
   L nodes, a slice lies in its node's lane. Every boundary p leaves the same set of rows behind whatever G, W and the
   workers are: that is what makes an epoch resumable anywhere by anyone.
7. **Steps.** Step s is the s-th global batch since the position at which iteration began. A worker takes whole steps, a
   few consecutive ones at a time (`Steps.parcels`), or every so many-th (`Steps.turns`) where torch's own DataLoader
   deals them.

Without ``shuffle`` the epoch sequence is the source order and there is one lane. How several datasets become one
sequence is told in `mixing`.

Randomness: a permutation of n is the stable argsort of the upper 32 bits of n raw words of Philox 4x64 (numpy promises
the streams of its BitGenerators, not of Generator's methods), keyed by (seed, epoch), its counter by what is permuted.

Why a window of 8 ranges by default: what it mixes and what it costs, measured by ``scripts/bench shuffle`` (batches of
256 rows; *blocks*: different blocks in a batch, of those of a full shuffle; *labels*: distance of a batch's labels from
the whole's if the dataset is sorted by ten labels, 0.08 in a full shuffle; *again*: of 255 rows in a row's batch, how
many are in it in the next epoch; *wait*: the longest, for a loop at half the rate of a link of 1 Gbit/s)::

    window            blocks  labels  again    held   wait
    1                   0.13    0.90   15.9    32 MiB  0.1 s
    4                   0.44    0.65    1.0   128 MiB  0.3 s
    8                   0.64    0.43    0.3   256 MiB  0.4 s
    16                  0.79    0.30    0.1   512 MiB  1.1 s
    64                  0.93    0.16    0.03    2 GiB  4.3 s
    8, 8 lanes          0.94    0.16    0.03  256 MiB a node

Beyond 8 a batch gains less with each doubling than memory, cache and waiting pay for it, and lanes multiply it: 8 nodes
mix as a window of 64 does. Beside others: a shuffle buffer of 1,000 rows has 0.13, 0.83 and 14.1; rows that are shifted
within a block of as many rows as 8 ranges (MosaicML's py1e) mix alike, 0.65, 0.43 and 0.3; a buffer of that many rows
mixes as a window of 16 does, because it hands rows on long after their neighbours, but it must be filled before the
first batch and filled again to resume. Positions in two epochs are not correlated at any window (0.02 at most, within
four standard errors). A dataset that is sorted by what matters wants a larger ``shuffle_window``.

Why slots: a ramp that took the first 1/32 of the first range would show a small dataset's first rows first in every
epoch. Why the remainder rule is not part of the order key: it changes the last step only, and its default depends on
the number of ranks, so a run that goes from one rank to two would refuse its own state.
"""

from dhtdata.order.epoch import MAX_PIECE_ROWS, EpochOrder, Pieces, Window
from dhtdata.order.mix_state import MixKey, MixState
from dhtdata.order.mixing import BATCHINGS, STOPS, Mixing, MixSteps
from dhtdata.order.shares import Pattern, parts_of
from dhtdata.order.state import MAX_EPOCHS, MAX_LANES, OrderKey, State
from dhtdata.order.steps import Steps
from dhtdata.order.turns import REMAINDERS, Dealt, Path, Share, Turns

__all__ = [
    "BATCHINGS",
    "MAX_EPOCHS",
    "MAX_LANES",
    "MAX_PIECE_ROWS",
    "REMAINDERS",
    "STOPS",
    "Dealt",
    "EpochOrder",
    "MixKey",
    "MixState",
    "MixSteps",
    "Mixing",
    "OrderKey",
    "Path",
    "Pattern",
    "Pieces",
    "Share",
    "State",
    "Steps",
    "Turns",
    "Window",
    "parts_of",
]
