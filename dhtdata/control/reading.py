"""`Reading`: a running loop that the peer knows of, over a connection of its own (see `dhtdata.store.foresight`)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TypeVar

from dhtdata.control.client import EndOfFile, Link, PeerClient
from dhtdata.control.foreseeing import Foresee, Foreseen, packed
from dhtdata.control.protocol import Done, Request
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError, PeerError

ANSWER_S = 5.0
_A = TypeVar("_A", Foreseen, Done)


class Reading:
    """One loop of one process. A peer that took another's place is told anew. Close it when the loop ends."""

    def __init__(self, client: PeerClient) -> None:
        self._client = client
        self._link: Link | None = None

    def stand(self, order: Digest, position: int, row_bytes: float) -> tuple[int, ...]:
        """The loop is here now; where the parts of its order begin that the peer knows.

        NotFoundError if no peer runs: nobody drops anything then.
        """
        return self._ask(Foresee(order=order, position=position, row_bytes=row_bytes), Foreseen).parts

    def learn(self, order: Digest, first: int, stop: int, spans: Mapping[Digest, array[int]]) -> None:
        """Tell which positions of ``[first, stop)`` read a shard: ends of spans, ascending."""
        self._ask(packed(order, first, stop, spans), Done)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _ask(self, request: Request, expected: type[_A]) -> _A:
        if self._link is None:
            self._link = self._client.connection()
        try:
            answer = next(self._link.ask(request, ANSWER_S))
        except EndOfFile as failure:
            self.close()
            raise NotFoundError("the peer ended while a loop told it where it is") from failure
        except BaseException:
            self.close()
            raise
        if not isinstance(answer, expected):
            raise PeerError(f"the peer answered with a {type(answer).__name__}, not a {expected.__name__}")
        return answer
