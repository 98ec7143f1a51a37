"""`Mix`: several datasets as one stream, by weight. What is taken when is told in `dhtdata.order.mixing`.

Under "random" and "stratified" a batch has rows of several sources, so these need the same columns of the same types,
and the same ``collate`` and ``decode``. A transform of a source runs on its rows before they are mixed; it must take
samples, and on_error must be the same for all. Under "per_source" every batch is of one source, as that source was
mounted: columns may differ, and transforms may take batches. ``remainder``, ``predownload`` and the epoch of a source's
own iteration do not matter to a mix, and a source may be iterated over by itself as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.gather.parcels import VALID
from dhtdata.mount.arguments import whole
from dhtdata.mount.dataset import StreamingDataset
from dhtdata.mount.epochs import Epochs, Run
from dhtdata.mount.loop import Loop
from dhtdata.mount.meter import Held
from dhtdata.mount.mix_modes import PLACE, Modes, check_alike, fitting_ahead, pairs_of
from dhtdata.mount.mixed import MixSupply, TurnPipeline
from dhtdata.mount.pipeline import Pipeline
from dhtdata.mount.plain import meet_torch
from dhtdata.mount.stream import Stream
from dhtdata.mount.transform import Transform
from dhtdata.order import EpochOrder, Mixing, MixKey, MixState, MixSteps, Pattern, Share, Turns, parts_of


class Mix(Stream):
    """Rows or batches of several mounted datasets. Each iteration is the next epoch of the mix.

        mix = dhtdata.Mix([(a, 0.7), (b, 0.3)], batching="stratified", source_column="_source")

    The sources are mounted with the same ``batch_size``, ``format``, ranks and lanes. ``batching``: "random" draws rows
    by weight, "stratified" has every source's share in every batch, as nearly as whole rows allow, with the difference
    carried on to the next, "per_source" gives every batch one source, in turns as even as the weights allow. Each
    source goes through its own epochs in its own order, so that its every row comes once in each; where an epoch of the
    mix leaves off, the next goes on. An epoch ends, with ``stop="first"``, when a source is needed that has none of its
    rows left; with "all" when every source has been seen whole, while others are in their second epoch or later.
    All epochs of a mix have equally many items: ``len()``.

    ``seed`` is for the draws of "random". ``remainder`` as in `dhtdata.mount`; ``transform`` and ``transform_on``, too:
    a function on the batches of the mix, or on its rows after those of the sources. ``on_error``: "raise" or "skip", by
    default as the sources were mounted. ``source_column``: a column with the number of the source of each row; a
    source's transform gets rows with it and has to hand it on. ``threads`` gather ahead of the loop; by default as many
    as a source has. Weights are taken as parts of a whole of at most 65,536: see ``weights``.

    `dhtdata.torch.DataLoader`, torch's own and the state work as with a single dataset. A state names the sources,
    weights and modes, and goes on with any number of ranks and workers; under "per_source" the global batch must stay.
    ConfigError names what does not fit together. Closing a mix closes its sources.
    """

    def __init__(
        self,
        sources: Iterable[tuple[StreamingDataset, float]],
        *,
        batching: str = "random",
        stop: str = "first",
        seed: int = 0,
        remainder: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        transform_on: str | None = None,
        on_error: str | None = None,
        source_column: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._sources, weights = pairs_of(sources)
        self._key = MixKey(batching, stop, parts_of(weights))
        self._pattern = Pattern(self._key.weights)
        self._mixings: dict[int, Mixing] = {}
        self._per_source = batching == "per_source"
        first = self._sources[0].loop
        check_alike(self._sources)
        mixed = Modes(self._sources, self._per_source, source_column, on_error)
        own = Transform.of(transform, transform_on, mixed.skips, batched=first.batched, place=PLACE)
        ranks = first.crew.ranks
        self._loop = Loop(
            batch_size=first.batch_size,
            shuffle=any(source.loop.shuffle for source in self._sources),
            seed=whole("seed", seed),
            window=1,
            remainder=remainder if remainder is not None else ("uneven" if ranks == 1 else "pad"),
            format=first.format,
            predownload_bytes=None,
            crew=first.crew,
            threads=whole("threads", threads)
            if threads is not None
            else max(source.loop.threads for source in self._sources),
            transform=mixed.transform(own),
            shaping=mixed.shaping(),
        )
        self._column = mixed.column
        self._ahead_bytes = fitting_ahead(self._sources)
        self._epochs = Epochs(Run(0, 0, max(source.lanes for source in self._sources)), keeps_lanes=True)
        self._check_columns()
        self._check_length()
        meet_torch(Mix)

    # What it is

    @property
    def sources(self) -> tuple[StreamingDataset, ...]:
        return self._sources

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the sources, as nearly as parts of a whole of at most 65,536 meet what was asked for."""
        return tuple(part / self._pattern.period for part in self._key.weights)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch of the mix, all ranks together."""
        return self._mixing(self._epochs.at.lanes).rows

    def __len__(self) -> int:
        return len(self._cut(self._epochs.start_of(0), self._share(), []))

    def __repr__(self) -> str:
        named = ", ".join(
            f"{weight:.3g} of {source.view.dataset.title} split {source.view.split.name}"
            for source, weight in zip(self._sources, self.weights, strict=True)
        )
        return f"<Mix {self._key.batching}: {named}>"

    # What a stream is

    def held(self) -> Held:
        found = [source.held() for source in self._sources]
        return Held(sum(held.stalled_s for held in found), sum(held.ahead_bytes for held in found))

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def steps(self, run: Run, worker: int = 0, workers: int = 1) -> MixSteps:
        orders = [source.order(0, run.lanes) for source in self._sources]
        return self._cut(run, self._share(worker, workers), orders)

    def _cut(self, run: Run, share: Share, orders: Sequence[EpochOrder]) -> MixSteps:
        return MixSteps(
            self._mixing(run.lanes),
            orders,
            share,
            epoch=run.epoch,
            global_batch=self._loop.global_batch,
            remainder=self._loop.remainder,
            consumed=run.rows,
        )

    def state_at(self, run: Run) -> dict[str, Any]:
        streams = self._mixing(run.lanes).streams(run.epoch, run.rows)
        return MixState(
            key=self._key,
            seed=self._loop.seed,
            epoch=run.epoch,
            rows=run.rows,
            global_batch=self._loop.global_batch,
            sources=tuple(
                source.state_of(Run(epoch, row, run.lanes))
                for source, (epoch, row) in zip(self._sources, streams, strict=True)
            ),
        ).as_dict()

    def _read(self, state: Mapping[str, Any]) -> tuple[Run, int]:
        readers = [source.read_state for source in self._sources]
        found = MixState.from_dict(state, key=self._key, seed=self._loop.seed, readers=readers)
        if self._per_source and found.global_batch != self._loop.global_batch:
            raise ConfigError(
                f"the state was saved at a global batch of {found.global_batch} rows, here it is "
                f"{self._loop.global_batch}: with batching='per_source' the turns of the sources depend on it"
            )
        mixing = self._mixing(found.lanes)
        if found.rows > mixing.rows:
            raise ConfigError(f"the state has consumed {found.rows} rows, an epoch of this mix has {mixing.rows}")
        if [(each.epoch, each.rows) for each in found.sources] != mixing.streams(found.epoch, found.rows):
            raise ConfigError("the state of the mix is damaged: its sources stand where this mix never is")
        return Run(found.epoch, found.rows, found.lanes), found.global_batch

    def _pipeline(self, steps: Turns, format: str | None) -> Pipeline:
        views = [(source.view, ahead) for source, ahead in zip(self._sources, self._ahead_bytes, strict=True)]

        def supply(schema: pa.Schema) -> MixSupply:
            return MixSupply(views, self._key.weights, schema, self._column)

        schemas = [source.schema for source in self._sources]
        if not self._per_source:
            return Pipeline(supply(schemas[0]), self._loop, format)
        for source in self._sources:
            source.loop.check_transform(format or self._loop.format)
        lines = [(supply(schema), source.loop) for schema, source in zip(schemas, self._sources, strict=True)]
        return TurnPipeline(supply(schemas[0]), self._loop, lines, format)

    def _mixing(self, lanes: int) -> Mixing:
        found = self._mixings.get(lanes)
        if found is None:
            found = self._mixings[lanes] = Mixing(
                self._pattern,
                [source.num_rows for source in self._sources],
                batching=self._key.batching,
                stop=self._key.stop,
                seed=self._loop.seed,
                global_batch=self._loop.global_batch,
                lanes=lanes,
            )
        return found

    def _check_columns(self) -> None:
        added = {VALID: "the mark of padding"} if self._loop.remainder == "pad" else {}
        if self._column is not None:
            added[self._column] = "source_column"
        for number, source in enumerate(self._sources):
            for name in added.keys() & set(source.schema.names):
                raise ConfigError(f"column {name!r} of source {number} collides with {added[name]}: choose another")

    def _check_length(self) -> None:
        ranks, rows = self._loop.crew.ranks, self.num_rows
        if self._loop.remainder == "uneven" and rows < ranks:
            raise ConfigError(
                f"an epoch of this mix has {rows} rows, fewer than the {ranks} ranks, and remainder='uneven' would "
                "leave some without a step: choose remainder='pad' or fewer ranks"
            )
        if not len(self):
            raise ConfigError(
                f"an epoch of this mix has {rows} rows, fewer than one global batch of {self._loop.global_batch}, and "
                f"remainder={self._loop.remainder!r} leaves none: choose a smaller batch_size"
            )
