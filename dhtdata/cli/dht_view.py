"""The DHT as people see it: a node's standing, its contacts by distance, the way a look-up took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dhtdata.cli.output import SHORT_DIGITS, facts, number, table
from dhtdata.control.dht import DhtFound, DhtPong, DhtStatus, DhtStep, DhtTrace
from dhtdata.counts import counted
from dhtdata.durations import apart, spoken, trip

BEHIND_S = 3_600.0
WIDE = 96
MAX_HOP_ROWS = 10
MAX_FOUND_ROWS = 16
MAX_REASONS = 6
_NODE_DIGITS = 8
_ANSWERED = "answered"


def summary(seen: DhtStatus) -> str:
    """One line for the status of a peer: its place in the DHT, and what is wrong, if anything is."""
    said = [_crowd(seen), _standing(seen)]
    if seen.clock_wrong:
        said.append(f"clock {apart(seen.clock_ahead_s)} the others': set it")
    if seen.shards_behind_s > BEHIND_S:
        said.append(f"announcing is {spoken(seen.shards_behind_s)} behind")
    return "; ".join(said)


def standing(seen: DhtStatus) -> list[RenderableType]:
    """The whole status: facts, then contacts by distance."""
    network = seen.network if seen.network == "public" else f"private, fingerprint {seen.network}"
    rows = [
        ("network", network),
        ("node", seen.node),
        ("listens", f"UDP port {seen.port}, {_families(seen.families)}"),
        ("reached", _reached(seen)),
        *([("seen at", ", ".join(seen.seen_as))] if seen.seen_as else []),
        ("contacts", _crowd(seen)),
        ("holds", f"{counted(seen.records_held, 'record')} under {counted(seen.keys_held, 'key')}"),
        ("answered", _answered(seen)),
        ("asked", _asked(seen)),
        ("clock", _clock(seen)),
        *([("shards", _shards(seen))] if seen.shard_keys or not seen.client else []),
    ]
    rows += [("bootstrap" if not place else "", reason) for place, reason in enumerate(_reasons(seen))]
    return [facts(rows), *([_distances(seen)] if seen.contacts else [])]


def way(trace: DhtTrace, what: str, width: int) -> list[RenderableType]:
    """A look-up: its key and what is kept under it (empty if not known), its calls hop by hop, what it came to."""
    pieces: list[RenderableType] = [Text.assemble((what or "key", "bold"), f"  {trace.key}")]
    if trace.steps:
        pieces += ["", _hops(trace.steps, width)]
        pieces += [Text(f"  {reason}", style="dim") for reason in _odd_outcomes(trace.steps)]
    if trace.found:
        pieces += ["", _found_table(trace.found)]
        if not what:
            pieces += [Text(f"  {each.says}", style="dim") for each in _shown(trace.found) if each.kind == "name"]
    if (more := len(trace.found) - MAX_FOUND_ROWS) > 0:
        pieces.append(Text(f"… and {counted(more, 'more record')}: --json has all", style="dim"))
    # In a group, a sentence is broken between words; alone it would not be broken at all, as what may be copied.
    return [*pieces, Group(Text(f"\n{outcome(trace)}", style="bold" if trace.found else "bold yellow"))]


def outcome(trace: DhtTrace) -> str:
    """What a look-up came to, in a sentence."""
    answered = sum(step.outcome == _ANSWERED for step in trace.steps)
    asked = f"{answered} of {counted(len(trace.steps), 'node')} asked answered" if trace.steps else "nobody was asked"
    if not trace.found or trace.first_s is None:
        advice = "" if trace.steps else " This peer knows no other node: name one with --bootstrap."
        return f"Nothing found: {asked} in {trip(trace.took_s)}.{advice}"
    first = "at once, held by this peer itself" if trace.first_s < 1e-3 else f"after {trip(trace.first_s)}"
    paths = len({step.path for step in trace.steps})
    on = f" on {paths} paths" if paths > 1 else ""
    found = counted(len(trace.found), "record")
    return f"Found {found}: the first {first}, all after {trip(trace.took_s)}; {asked}{on}."


def pong(answer: DhtPong) -> list[RenderableType]:
    """Who answered a ping."""
    kind = "a client: it asks, and keeps nothing for others" if answer.client else "a full node of the DHT"
    rows = [
        ("address", answer.address),
        ("node", answer.node),
        ("is", kind),
        ("answered after", trip(answer.took_s)),
        ("distance", f"{counted(answer.shared_bits, 'leading bit')} shared with our node"),
    ]
    return [facts(rows)]


def _families(versions: Sequence[int]) -> str:
    return " and ".join(f"IPv{version}" for version in versions)


def _crowd(seen: DhtStatus) -> str:
    if not seen.contacts:
        return "no contacts yet"
    return f"{counted(seen.contacts, 'contact')} of about {counted(seen.nodes_estimated, 'node')}"


def _standing(seen: DhtStatus) -> str:
    if seen.client:
        return "a client, which nobody asks"
    if seen.reached:
        return "reached by strangers"
    if not seen.contacts:
        return "nobody is known who could reach it"
    return f"not reached by strangers: open port {seen.port} for UDP and TCP"


def _reached(seen: DhtStatus) -> str:
    if seen.client:
        return "no, by choice: this private peer is a client, which asks and serves nobody"
    if seen.reached:
        missing = [version for version in seen.families if version not in seen.families_reached]
        but = f"; over {_families(missing)} no stranger has come" if missing else ""
        return f"by strangers, over {_families(seen.families_reached)}{but}"
    if not seen.contacts:
        return "not known: it has met no other node; name one with --bootstrap, or hand out its address"
    return (
        f"no: no stranger's datagrams arrive, so it takes part as a client and announces nothing; "
        f"open port {seen.port} for UDP and TCP, and forward it in the router"
    )


def _answered(seen: DhtStatus) -> str:
    dropped = [
        (seen.datagrams_refused, "malformed"),
        (seen.answers_late, "too late or never asked for"),
        (seen.strangers, "of another network"),
        (seen.over_rate, "over the rate"),
        (seen.other_versions, "of another version"),
    ]
    shown = ", ".join(f"{number(count)} {kind}" for count, kind in dropped if count)
    return f"{counted(seen.requests_answered, 'request')}; datagrams dropped: {shown or 'none'}"


def _asked(seen: DhtStatus) -> str:
    if not seen.calls:
        return "nobody yet"
    share = f" ({100 * seen.calls_unanswered / seen.calls:.0f}%)" if seen.calls_unanswered else ""
    trips = f", a round trip takes {trip(seen.round_trip_s)}" if seen.round_trip_s else ""
    return f"{counted(seen.calls, 'call')}, {number(seen.calls_unanswered)}{share} unanswered{trips}"


def _clock(seen: DhtStatus) -> str:
    others = counted(seen.clock_witnesses, "other node")
    if seen.clock_wrong:
        return f"our clock is {apart(seen.clock_ahead_s)} {others}: set it, claims are refused until then"
    if seen.clock_witnesses < 3:
        return f"not compared: {others} known, 3 are needed"
    return f"within {max(1, round(abs(seen.clock_ahead_s)))} s of {others}"


def _shards(seen: DhtStatus) -> str:
    keys = counted(seen.shard_keys, "key")
    if not seen.shard_keys:
        return "none to announce"
    if seen.shards_behind_s > BEHIND_S:
        return f"{keys} to announce, {spoken(seen.shards_behind_s)} behind: they are caught up as fast as others answer"
    return f"{keys} kept announced, on time" if seen.reached else f"{keys} to announce, once strangers reach us"


def _reasons(seen: DhtStatus) -> list[str]:
    reasons = list(seen.bootstrap_failures[:MAX_REASONS])
    if (more := len(seen.bootstrap_failures) - len(reasons)) > 0:
        reasons.append(f"… and {more} more: --json has all")
    return reasons


def _distances(seen: DhtStatus) -> RenderableType:
    """How many contacts share how many leading bits with us: half the network shares none, a quarter one, ..."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(justify="right", style="dim")
    drawn.add_column(no_wrap=True)
    most = max(seen.contacts_by_bits)
    drawn.add_row("shared bits", Text("contacts, the farthest first", style="dim"))
    for bits, count in enumerate(seen.contacts_by_bits):
        length = -(-40 * count // most) if most > 40 else count
        bar = Text("█" * length, style="cyan")
        drawn.add_row(str(bits), Text.assemble(bar, f" {number(count)}" if count else "·"))
    return Group(Text("\nRouting table", style="bold"), drawn)


def _hops(steps: Sequence[DhtStep], width: int) -> RenderableType:
    """Calls grouped by hop, the nearest last."""
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    right = {"hop", "path", "time", "nodes", "records"}
    for name in ("hop", "path", "node", "address", "shared bits", "time", "nodes", "records"):
        drawn.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=name not in ("address",)
        )
    longest = max(step.near_bits for step in steps)
    room = 12 if width >= WIDE else 7
    ordered = sorted(steps, key=lambda step: (step.hop, step.near_bits, step.outcome == _ANSWERED))
    for place, (hop, calls) in enumerate(groupby(ordered, key=lambda step: step.hop)):
        if place:
            drawn.add_row()
        hidden, shown = _chosen(list(calls))
        if hidden:
            silent = sum(step.outcome != _ANSWERED for step in hidden)
            left_out = (Text(f"… {len(hidden)} more", "dim"), "", Text(f"{silent} silent" if silent else "", "dim"))
            drawn.add_row(str(hop), "", "", *left_out)
        for row, step in enumerate(shown):
            first = not hidden and not row
            drawn.add_row(str(hop) if first else "", str(step.path + 1), *_cells(step, longest, room))
    return drawn


def _chosen(calls: list[DhtStep]) -> tuple[list[DhtStep], list[DhtStep]]:
    """Calls of one hop that are left out, and those that are shown: who sent records first, then the nearest."""
    if len(calls) <= MAX_HOP_ROWS + 1:
        return [], calls
    best = sorted(calls, key=lambda step: (step.records > 0, step.near_bits), reverse=True)[:MAX_HOP_ROWS]
    shown = set(map(id, best))
    return [step for step in calls if id(step) not in shown], [step for step in calls if id(step) in shown]


def _cells(step: DhtStep, longest: int, room: int) -> list[RenderableType]:
    length = step.near_bits if longest <= room else -(-room * step.near_bits // longest)
    answered = step.outcome == _ANSWERED
    bits = Text.assemble(f"{step.near_bits:>3} ", ("█" * length, "cyan" if answered else "dim"))
    node, address = step.node[:_NODE_DIGITS], step.address
    if not answered:
        style = "yellow"
        return [Text(node, style), Text(address, style), bits, Text("no answer", style), "", ""]
    records = Text(number(step.records), "bold green") if step.records else Text("·", "dim")
    return [node, Text(address), bits, trip(step.took_s), number(step.contacts) if step.contacts else "·", records]


def _odd_outcomes(steps: Sequence[DhtStep]) -> list[str]:
    """Who did answer, but wrongly; silence is shown in the table and needs no words."""
    odd = [step for step in steps if step.outcome not in (_ANSWERED, "did not answer", "was not asked again")]
    said = [f"{step.address} {step.outcome}" for step in odd[:MAX_REASONS]]
    return [*said, *([f"… and {len(odd) - MAX_REASONS} more"] if len(odd) > MAX_REASONS else [])]


def _shown(found: Sequence[DhtFound]) -> Sequence[DhtFound]:
    return found[:MAX_FOUND_ROWS]


def _found_table(found: Sequence[DhtFound]) -> RenderableType:
    now_s = time.time()
    columns = ["record", "signer", "sequence", "lasts", "signer is at"]
    rows = [
        [_record(each), each.signer[:_NODE_DIGITS], str(each.sequence), _left(each, now_s), ", ".join(each.addresses)]
        for each in _shown(found)
    ]
    known = any(row[-1] for row in rows)
    return table(
        "", *columns[: 5 if known else 4], rows=[row[: 5 if known else 4] for row in rows], right=("sequence",)
    )


def _record(found: DhtFound) -> str:
    match found.kind:
        case "name":
            return f"name, of manifest {found.says[-64:][:SHORT_DIGITS]}"
        case "provider":
            return f"provider, has {found.says}"
        case "shards":
            return f"shards, {counted(int(found.says), 'key')}"
        case _:
            return found.kind


def _left(found: DhtFound, now_s: float) -> str:
    left_s = found.expires - now_s
    if found.kind == "name":
        return f"fresh, {spoken(left_s)}" if left_s > 0 else f"stale, {spoken(-left_s)}"
    return spoken(left_s) if left_s > 0 else "expired"
