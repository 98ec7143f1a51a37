"""Where records that must not be taken over are kept: all over the region round their key, not at the nearest nodes.

Why: whoever makes 20 identifiers nearer to a key than every honest node owns the 20 nearest, for seconds of work in a
small network; against them, storing at the 20 nearest fails always, and limits on addresses do not help somebody with
20 networks. Storing all over a region of the key space (SR-DHT-Store, arXiv 2505.01139) makes the identifiers nearest
to the key worth nothing: a placement model found at least 99% with 20 to 1,000 such identifiers over 50 networks.

The region of a key is the aligned part of the identifier space round it that holds 30 to 60 nodes: the leading
`region_bits` bits of the key, from an estimate of the size of the network that does not look at the key's
neighbourhood. It is explored by four paths, one to the key and one into each other quarter of the region, so that what
crowds round the key meets one path only. Both who announces and who searches asks all nodes that these paths find; if
their estimates differ, one region lies inside the other.

Names, which lead to everything else, have three keys far apart, and so three regions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from dhtdata.dht.lookup import Neighbourhood, Pace
from dhtdata.dht.routing import ID_BITS, Contact, identifier, number
from dhtdata.formats.addresses import network_group, scope

REGION_NODES = 60
QUARTERS = 4
GROUP_LIMIT = 2
PATH_WIDTH = 16  # a quarter holds 8 to 15 nodes on average
PACE = Pace(parallel=3, at_first=2, calls=96, width=PATH_WIDTH, per_group=GROUP_LIMIT)


def region_bits(nodes_estimated: int) -> int:
    """Leading bits that a region's members share with its key: 0 in a network of up to 60 nodes."""
    return min(ID_BITS - 2, max(0, (max(1, nodes_estimated) - 1) // REGION_NODES).bit_length())


def region_targets(key: bytes, bits: int, randomness: random.Random) -> list[bytes]:
    """The key, then a random point in each of the other three quarters of its region."""
    free = ID_BITS - bits - 2
    quarter = number(key) >> free
    others = ((quarter ^ other) << free | randomness.getrandbits(free) for other in range(1, QUARTERS))
    return [key, *map(identifier, others)]


def members(key: bytes, bits: int, found: Iterable[Neighbourhood]) -> list[Contact]:
    """Nodes of the region that the paths found: at most 60, at most 2 of one network, the paths taking turns."""
    groups: Counter[str] = Counter()
    chosen: dict[bytes, Contact] = {}
    for contact in _in_turns([neighbourhood.contacts for neighbourhood in found]):
        if contact.id in chosen or (contact.long_id ^ number(key)) >> (ID_BITS - bits):
            continue
        if scope(contact.address.ip) == "global":
            group = network_group(contact.address)
            if groups[group] >= GROUP_LIMIT:
                continue
            groups[group] += 1
        chosen[contact.id] = contact
        if len(chosen) == REGION_NODES:
            break
    return list(chosen.values())


def _in_turns(lists: Sequence[Sequence[Contact]]) -> Iterable[Contact]:
    for position in range(max(map(len, lists), default=0)):
        for each in lists:
            if position < len(each):
                yield each[position]
