"""The record table as its rules say it, without a thought for time: every figure is counted anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from dhtdata.dht.quotas import GROUP_BYTES, KEY_BYTES, RECORD_BYTES, SOURCE_BYTES, Limits, Origin
from dhtdata.dht.rules import NAME_KEPT_S, kept_until, keys_of, version_of
from dhtdata.formats.addresses import network_group, scope
from dhtdata.formats.records import NameRecord, PeerRecord, Signed, decode, node_id, withdrawn


@dataclass(eq=False)
class Plain:
    """A record in the table. ``keys``: those under which it is found. ``ip`` and ``group`` are empty for ours."""

    signed: Signed
    origin: Origin | None
    received_s: float
    until_s: float
    keys: list[bytes] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        return self.origin is None

    @property
    def ip(self) -> str:
        if self.origin is None:
            return ""
        address = self.origin.address
        return str(address) if scope(address.ip) == "loopback" else address.ip

    @property
    def group(self) -> str:
        return "" if self.origin is None else network_group(self.origin.address)

    @property
    def slot(self) -> object:
        record = self.signed.record
        if isinstance(record, NameRecord):
            return "name"
        return (type(record), self.signed.signer, record.addresses[0].ip if isinstance(record, PeerRecord) else b"")

    @property
    def is_claim(self) -> bool:
        return not isinstance(self.signed.record, NameRecord | PeerRecord)

    @property
    def size(self) -> int:
        return RECORD_BYTES + len(self.signed.data) + KEY_BYTES * len(self.keys)

    def distance(self, own: int) -> int:
        return min(int.from_bytes(key, "big") ^ own for key in keys_of(self.signed))


class PlainHoldings:
    def __init__(self, own_id: bytes, limits: Limits) -> None:
        self.own = int.from_bytes(own_id, "big")
        self.limits = limits
        self.under: dict[bytes, list[Plain]] = {}

    def records(self) -> list[Plain]:
        return list({id(each): each for here in self.under.values() for each in here}.values())

    def bytes_of_ip(self, ip: str) -> int:
        return sum(each.size for each in self.records() if each.ip == ip)

    def bytes_of_group(self, group: str) -> int:
        there = [each for each in self.records() if each.group == group]
        sources = len({each.ip for each in there})
        overhead = SOURCE_BYTES * sources + GROUP_BYTES if there and group else 0
        return sum(each.size for each in there) + overhead

    def groups(self) -> list[str]:
        return sorted({each.group for each in self.records() if not each.ours})

    def bytes_in_all(self) -> int:
        return sum(map(self.bytes_of_group, [*self.groups(), ""]))

    def forget(self, now_s: float) -> int:
        expired = [each for each in self.records() if each.until_s <= now_s]
        for each in expired:
            self.drop(each)
        return len(expired)

    def drop(self, gone: Plain) -> None:
        for key in tuple(gone.keys):
            self.leave(key, gone)

    def leave(self, key: bytes, gone: Plain) -> None:
        gone.keys.remove(key)
        self.under[key].remove(gone)
        if not self.under[key]:
            del self.under[key]

    def keep(self, data: bytes, origin: Origin | None, now_s: float) -> bool:
        signed = decode(data)
        new = Plain(signed, origin, now_s, kept_until(signed.record, now_s))
        known = next((each for each in self.records() if each.signed.data == data), None)
        least = RECORD_BYTES + KEY_BYTES + len(data)
        if not new.ours and not known and self.bytes_of_ip(new.ip) + least > self.limits.bytes_per_ip:
            if node_id(signed.signer) not in self.under:
                return False
        if known and (not new.ours or known.ours):
            if isinstance(signed.record, NameRecord):
                known.until_s = now_s + NAME_KEPT_S
            return True
        if known:
            self.drop(known)
        seats = {key: leaver for key in keys_of(signed) if (leaver := self.seat(key, new)) is not new}
        if not seats or not self.make_room(new, seats):
            return False
        for key, leaver in seats.items():
            if leaver is not None and key in leaver.keys:
                self.leave(key, leaver)
            self.under.setdefault(key, []).append(new)
            new.keys.append(key)
        while self.bytes_in_all() > self.limits.bytes_in_all:
            self.drop(self.farthest(self.fattest())[0])
        return True

    def seat(self, key: bytes, new: Plain) -> Plain | None:
        """Who leaves the key for the new one: None for nobody, the new one itself if it gets no place."""
        here = self.under.get(key, [])
        same = next((each for each in here if each.slot == new.slot), None)
        if same and version_of(same.signed.record) >= version_of(new.signed.record):
            return new
        alike = [each for each in here if each is not same and each.group == new.group]
        if not new.ours:
            if sum(each.is_claim == new.is_claim for each in alike) >= self.limits.records_per_key_and_group:
                return new
        if same or len(here) < self.limits.records_per_key:
            return same
        claims = [each for each in here if each.is_claim and not each.ours]
        most = max((sum(each.group == one.group for each in claims) for one in claims), default=0)
        own = sum(each.group == new.group for each in claims)
        if not claims or (new.is_claim and not new.ours and most < own + 2):
            return new
        full = [each for each in claims if sum(other.group == each.group for other in claims) == most]
        return full[-1]

    def make_room(self, new: Plain, seats: dict[bytes, Plain | None]) -> bool:
        leavers = [leaver for leaver in seats.values() if leaver is not None]

        def loss(each: Plain) -> int:
            count = leavers.count(each)
            return each.size if count == len(each.keys) else KEY_BYTES * count

        losses = {each: loss(each) for each in leavers}
        size = RECORD_BYTES + len(new.signed.data) + KEY_BYTES * len(seats)
        lost_by_ip = sum(lost for each, lost in losses.items() if each.ip == new.ip)
        if new.ours:
            return self.bytes_of_group("") - lost_by_ip + size <= self.limits.bytes_in_all
        if self.bytes_of_ip(new.ip) - lost_by_ip + size > self.limits.bytes_per_ip:
            return False
        cost = size
        cost += 0 if any(each.ip == new.ip for each in self.records()) else SOURCE_BYTES
        cost += 0 if new.group in self.groups() else GROUP_BYTES
        group_bytes = self.bytes_of_group(new.group) + cost
        group_bytes -= sum(lost for each, lost in losses.items() if each.group == new.group)
        over = self.bytes_in_all() + cost - sum(losses.values()) - self.limits.bytes_in_all
        over_group = group_bytes - self.limits.bytes_per_group
        if over <= 0 and over_group <= 0:
            return True
        loser = self.fattest() if self.groups() else new.group
        if over_group > 0 or self.bytes_of_group(loser) <= group_bytes:
            loser = new.group
        over = max(over, over_group) if loser == new.group else over
        victims: list[Plain] = []
        for each in self.farthest(loser):
            if over <= 0:
                break
            gain = each.size - losses.get(each, 0)
            if loser == new.group and gain and each.distance(self.own) <= new.distance(self.own):
                return False
            victims.append(each)
            over -= gain
            if loser != new.group:
                left = [other for other in self.records() if other.group == loser and other not in victims]
                over -= 0 if any(other.ip == each.ip for other in left) else SOURCE_BYTES
                over -= 0 if left else GROUP_BYTES
        if over > 0:
            return False
        for each in victims:
            self.drop(each)
        return True

    def fattest(self) -> str:
        return max(self.groups(), key=lambda group: (self.bytes_of_group(group), [-ord(letter) for letter in group]))

    def farthest(self, group: str) -> list[Plain]:
        there = [each for each in self.records() if each.group == group]
        return sorted(there, key=lambda each: (each.distance(self.own), each.received_s), reverse=True)

    def stream(self, key: bytes) -> list[bytes]:
        here = self.under.get(key, [])
        told: list[Plain] = []
        live = [each for each in here if not withdrawn(each.signed.record)]
        # Networks take turns: the first of each, then the second of each, the oldest first.
        turn = {id(each): sum(other.group == each.group for other in live[:place]) for place, each in enumerate(live)}
        for each in sorted(live, key=lambda each: turn[id(each)]):
            if not isinstance(each.signed.record, NameRecord):
                peers = [
                    other
                    for other in self.under.get(node_id(each.signed.signer), [])
                    if isinstance(other.signed.record, PeerRecord)
                    and other.signed.signer == each.signed.signer
                    and not withdrawn(other.signed.record)
                ]
                peers.sort(key=lambda peer: version_of(peer.signed.record), reverse=True)
                told += [peer for peer in peers if peer not in told]
            told += [each] if each not in told else []
        told += [each for each in here if withdrawn(each.signed.record)]
        return [each.signed.data for each in told]
