"""One `Swarm` per dataset, made when first asked for, each with its task in the peer's group."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.peer.finder import Finder
from dhtdata.store import Store
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.swarm import NOBODY, Fetching, Swarm

MAX_SWARMS = 256


class Swarms:
    """The datasets whose providers this peer keeps track of; idle ones go when there are too many."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        store: Store,
        finder: Finder,
        http: HttpClient,
        remotes: Remotes,
        changed: Callable[[], None],
        own: Fetching = NOBODY,
    ) -> None:
        self._group = group
        self._store = store
        self._finder = finder
        self._http = http
        self._remotes = remotes
        self._changed = changed
        self._own = own
        self._swarms: OrderedDict[Digest, tuple[Swarm, asyncio.Task[None]]] = OrderedDict()

    def of(self, contents: Digest) -> Swarm:
        if contents not in self._swarms:
            swarm = Swarm(
                contents,
                self._http,
                self._remotes,
                discover=self._finder.providers,
                guard=self._finder.guard,
                changed=self._changed,
                own=self._own,
            )
            swarm.add(self._finder.known.everybody(), "known", trusted=True)
            swarm.add_web_seeds(self._finder.known.web_seeds, "user")
            self._group.create_task(self._add_published(swarm))
            self._swarms[contents] = (swarm, self._group.create_task(swarm.run()))
            self._drop_idle()
        self._swarms.move_to_end(contents)
        return self._swarms[contents][0]

    def name_web_seeds(self, seeds: Sequence[WebSeed]) -> None:
        """The user named these mirrors: all datasets are looked for there from now on."""
        self._finder.known.name_web_seeds(seeds)
        for swarm, _ in self._swarms.values():
            swarm.add_web_seeds(seeds, "user")

    async def _add_published(self, swarm: Swarm) -> None:
        """Web seeds that manifests here name for these contents."""
        swarm.add_web_seeds(await asyncio.to_thread(_published, self._store, swarm.contents), "manifest")

    def known(self, contents: Digest) -> Swarm | None:
        """The swarm if there is one already."""
        found = self._swarms.get(contents)
        return found[0] if found is not None else None

    def _drop_idle(self) -> None:
        idle = [contents for contents, (swarm, _) in self._swarms.items() if not swarm.interested]
        for contents in idle[: max(len(self._swarms) - MAX_SWARMS, 0)]:
            self._swarms.pop(contents)[1].cancel()


def _published(store: Store, contents: Digest) -> list[WebSeed]:
    found: list[WebSeed] = []
    for entry in store.manifests():
        try:
            manifest = Manifest.decode(store.read(entry.digest, limit_bytes=MAX_MANIFEST_BYTES))
        except DhtDataError:
            # Lost or damaged: `verify` repairs it.
            continue
        if manifest.contents == contents:
            found += manifest.web_seeds
    return found
