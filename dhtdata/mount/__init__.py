"""Mount: a dataset's rows in a training loop, while its shards still arrive.

| module | part |
|---|---|
| ``arguments`` | whole numbers and flags |
| ``resolve`` | from name, digest or ticket to contents and indexes |
| ``ranks`` | which rank this process is, and which worker |
| ``view`` | one split and its columns, across processes |
| ``filtering``, ``scanning`` | the rows that a filter keeps, and how long looking for them takes |
| ``loop`` | how a split is iterated over |
| ``epochs`` | which epoch comes next, agreed on by all processes |
| ``orphans`` | workers end with the process that started them |
| ``transform`` | a user's function on batches or samples |
| ``pipeline`` | from steps to what the loop gets |
| ``map_style`` | random access |
| ``frames`` | whole splits for pandas and Polars |
| ``page`` | memory that processes share |
| ``meter``, ``speed``, ``progress`` | what loops wait for, and the bar that shows it |
| ``plain`` | what torch's own DataLoader is told |
| ``plan`` | a run reckoned before it begins |
| ``stream`` | what is iterated over, whatever it is made of |
| ``dataset`` | `StreamingDataset` |
| ``mixed``, ``mix_modes``, ``mix`` | several datasets as one: `Mix` |

Shards are the business of `dhtdata.vault`, rows that of `dhtdata.gather`, their order that of `dhtdata.order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhtdata.config import Settings, entering, load_settings, parse_size
from dhtdata.errors import ConfigError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import parse_target
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.mount.arguments import flag, refuse_foreign, whole
from dhtdata.mount.dataset import StreamingDataset
from dhtdata.mount.loop import Loop
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.mix import Mix
from dhtdata.mount.plain import meet_torch
from dhtdata.mount.ranks import find_ranks
from dhtdata.mount.transform import ON_ERROR, Transform
from dhtdata.mount.view import View, open_view

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["MapStyleDataset", "Mix", "StreamingDataset", "mount"]

DEFAULT_WINDOW = 8
DEFAULT_TIMEOUT_S = 300.0


def mount(
    target: str,
    *,
    split: str = "train",
    columns: Sequence[str] | None = None,
    filter: str | pc.Expression | None = None,
    batch_size: int | None = None,
    global_batch_size: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    format: str = "numpy",
    shuffle_window: int = DEFAULT_WINDOW,
    remainder: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    transform_on: str | None = None,
    on_error: str = "raise",
    collate: Any = None,
    decode: Any = None,
    threads: int = 0,
    predownload: int | str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    rank: int | None = None,
    world_size: int | None = None,
    lanes: int | None = None,
    store: str | Path | None = None,
    home: str | Path | None = None,
    cache_limit: int | str | None = None,
    bootstrap: str | Sequence[str | Address] | None = None,
    network: str | Path | None = None,
    web_seeds: str | Sequence[str | WebSeed] | None = None,
    settings: Settings | None = None,
    **foreign: Any,
) -> StreamingDataset:
    """A dataset to iterate over. ``target``: a ticket, a ``dhtdata://`` name, a manifest digest or a name in the store.

    If all that is needed is in the store, nothing is asked of anybody; else the store's peer fetches, started if none
    runs. What arrives is verified before a row of it is seen.

    ``split``: which, "train" if nothing is said. ``format``: "numpy", "torch", "python" (lists) or "arrow" (record
    batches). ``columns``: which, in which order (all); columns that are stored apart and not asked for are not fetched.
    ``filter``: which rows count, as text such as ``"lang == 'en' and len(text) > 100"`` (see `dhtdata.filters.parse`)
    or as a ``pyarrow.compute.Expression``; lengths, epochs and row numbers are then those of the rows that it keeps.
    The first mount with a filter looks at its columns, unless statistics rule rows out; the result stays in the store.
    ``batch_size``: rows a batch *on this rank*, or ``global_batch_size``: on all ranks together; neither iterates over
    rows. ``shuffle``: another order every epoch, by ``seed``. ``shuffle_window``: row ranges of about 32 MiB that are
    shuffled together. ``remainder``: what the last rows of an epoch become, "pad" (equal steps on every rank;
    ``_valid`` marks what counts), "drop" or "uneven"; by default "uneven" at one rank and "pad" at several.
    ``transform``: a function on what the loop would get, or, with ``transform_on="sample"``, on each row of a batch,
    whose results are put together again; it runs where batches are made: in the loader's workers, or in ``threads``. It
    must survive pickling if workers are spawned. ``collate``: what becomes of lists of any length in a batch: "list",
    "padded", ``("padded", value)`` or "jagged", for all or by column; with ``transform_on="sample"``, of those that it
    returns. ``decode``: which encoded images become arrays, "image" or by column. See `shaping` for both.
    ``on_error="skip"`` leaves out rows that do not decode or on which ``transform`` fails, and says so in the log.
    ``threads``: how many gather, decode and transform ahead of the loop; they win where that releases the GIL.
    ``predownload``: bytes to fetch ahead of the loop, besides the window that is being shuffled; by default a window,
    at least 64 MB, less where the cache limit holds less. ``timeout``: seconds to wait for what nobody has. ``rank``
    and ``world_size``: see `ranks`. ``lanes``: runs of the epoch that nodes take, the number of nodes by default.
    ``store`` and those after it override the settings of `dhtdata.config`. ``network``: file with the secret of a
    private network; a ticket may carry the secret instead. ``web_seeds``: URLs of mirrors to fetch from as well, of any
    that this machine reaches.

    ConfigError names an argument that makes no sense, NotFoundError what nobody has.
    """
    refuse_foreign(foreign)
    crew = find_ranks(
        None if rank is None else whole("rank", rank),
        None if world_size is None else whole("world_size", world_size),
        None if lanes is None else whole("lanes", lanes),
    )
    if on_error not in ON_ERROR:
        raise ConfigError(f"on_error: {on_error!r} is none of {', '.join(ON_ERROR)}")
    skips = on_error == "skip"
    if skips and transform is None and not decode:
        raise ConfigError("on_error says what becomes of rows that fail: give transform or decode, too")
    place = f"split {split!r}"
    rank_batch = _rank_batch(batch_size, global_batch_size, crew.ranks)
    loop = Loop(
        batch_size=rank_batch,
        shuffle=flag("shuffle", shuffle),
        seed=whole("seed", seed),
        window=whole("shuffle_window", shuffle_window),
        remainder=remainder if remainder is not None else ("uneven" if crew.ranks == 1 else "pad"),
        format=format,
        predownload_bytes=None if predownload is None else parse_size(predownload),
        crew=crew,
        threads=whole("threads", threads),
        transform=Transform.of(transform, transform_on, skips, batched=rank_batch is not None, place=place),
    )
    if not isinstance(timeout, Real) or not timeout > 0:
        raise ConfigError(f"timeout: {timeout!r} is not a number of seconds above 0")
    flags = {
        "store": store,
        "home": home,
        "cache_limit": cache_limit,
        "bootstrap": bootstrap,
        "network": network,
        "web_seeds": web_seeds,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if settings is None:
        settings = load_settings(given)
    elif given:
        settings = replace(settings, **{name: getattr(load_settings(given), name) for name in given})
    meet_torch(StreamingDataset)
    wanted = parse_target(target)
    view = open_view(wanted, entering(settings, wanted), split, columns, timeout, _maker(filter))
    try:
        return StreamingDataset(view, loop.shaped(view.schema, collate, decode, skips, place))
    except BaseException:
        view.close()
        raise


def _maker(filter: str | pc.Expression | None) -> Callable[..., View]:
    if filter is None:
        return View
    from dhtdata.mount.filtering import FilteredView

    return partial(FilteredView, filter=filter)


def _rank_batch(batch_size: int | None, global_batch_size: int | None, ranks: int) -> int | None:
    """Rows a batch on each rank."""
    if global_batch_size is None:
        return None if batch_size is None else whole("batch_size", batch_size)
    if batch_size is not None:
        raise ConfigError("batch_size is of one rank, global_batch_size of all together: give one of them")
    size = whole("global_batch_size", global_batch_size)
    if size < 1 or size % ranks:
        smaller = max(size // ranks, 0) * ranks
        working = f"{smaller} and {smaller + ranks} do" if smaller else f"the smallest that does is {ranks}"
        raise ConfigError(
            f"global_batch_size: {size} rows do not divide into equal batches of {ranks} ranks: {working}"
        )
    return size // ranks
