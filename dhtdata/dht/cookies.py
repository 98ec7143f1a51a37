"""Cookies: what proves that somebody receives at the address it sends from (BEP 5's token, RFC 9000 section 8).

A cookie is the keyed digest of the address; the secret changes every 5 minutes, and the one before is still accepted,
so a cookie lives for 5 to 10 minutes and this side keeps nothing per address. Its first bit tells which of the two
secrets made it, so that checking costs one digest.

`Acquaintances` is the other side: the cookies that other nodes gave us, which IP of ours they saw, and whom we called
lately (`reachability` needs that). Bounded, oldest out.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict

from dhtdata.dht.envelope import COOKIE_BYTES, NO_COOKIE
from dhtdata.digest import keyed, random_id
from dhtdata.formats.addresses import Address

ROTATION_S = 300.0
COOKIE_LIFE_S = 2 * ROTATION_S
MAX_ACQUAINTANCES = 8_192
_SECRET_BYTES = 32


class CookieJar:
    """Makes and checks cookies. Times are of a clock that never goes back."""

    def __init__(self, now_s: float) -> None:
        self._period = int(now_s // ROTATION_S)
        self._secrets = [random_id(_SECRET_BYTES), random_id(_SECRET_BYTES)]

    def give(self, ip: str, port: int, now_s: float) -> bytes:
        """The cookie of an address."""
        self._rotate(now_s)
        return self._cookie(ip, port, self._period & 1)

    def knows(self, cookie: bytes, ip: str, port: int, now_s: float) -> bool:
        """Whether it was made for this address within the last 5 to 10 minutes."""
        self._rotate(now_s)
        return hmac.compare_digest(cookie, self._cookie(ip, port, cookie[0] >> 7))

    def _cookie(self, ip: str, port: int, parity: int) -> bytes:
        made = keyed(self._secrets[parity], f"{ip} {port}".encode(), length=COOKIE_BYTES)
        return bytes((parity << 7 | made[0] & 0x7F,)) + made[1:]

    def _rotate(self, now_s: float) -> None:
        period = int(now_s // ROTATION_S)
        if period == self._period:
            return
        if period - self._period > 1:
            # Both are too old: nobody has asked anything for a while.
            self._secrets[period & 1 ^ 1] = random_id(_SECRET_BYTES)
        self._period = period
        self._secrets[period & 1] = random_id(_SECRET_BYTES)


class _Acquaintance:
    __slots__ = ("called_s", "cookie", "gave_s", "saw_us_at")

    def __init__(self) -> None:
        self.cookie = NO_COOKIE
        self.gave_s = -1e18
        self.saw_us_at = b""
        self.called_s = -1e18


class Acquaintances:
    """What we remember of the addresses we call."""

    def __init__(self) -> None:
        self._known: OrderedDict[Address, _Acquaintance] = OrderedDict()

    def cookie(self, address: Address, now_s: float) -> bytes:
        """The last cookie that the address gave us; zeros if there is none or it is certainly too old."""
        known = self._known.get(address)
        return known.cookie if known is not None and now_s - known.gave_s < COOKIE_LIFE_S else NO_COOKIE

    def saw_us_at(self, address: Address) -> bytes:
        """Our IP (4 or 16 bytes) as the address saw it; empty if it never said."""
        known = self._known.get(address)
        return known.saw_us_at if known is not None else b""

    def called(self, address: Address, now_s: float) -> None:
        self._of(address).called_s = now_s

    def called_within(self, address: Address, now_s: float, period_s: float) -> bool:
        known = self._known.get(address)
        return known is not None and now_s - known.called_s <= period_s

    def gave(self, address: Address, cookie: bytes, now_s: float) -> None:
        known = self._of(address)
        known.cookie, known.gave_s = cookie, now_s

    def said(self, address: Address, our_ip: bytes) -> None:
        self._of(address).saw_us_at = our_ip

    def _of(self, address: Address) -> _Acquaintance:
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = _Acquaintance()
            if len(self._known) > MAX_ACQUAINTANCES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(address)
        return known
