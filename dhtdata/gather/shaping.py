"""The shapes that a mount asks for: what becomes of lists of any length (``collate``) and of images (``decode``).

``collate`` is "list" (an object array of one array a row, in torch a list of tensors), "padded", ``("padded", value)``
or "jagged" (`ragged` tells what these are), for all lists of fixed-width items, or a dict of column to one of these.
Named in a dict, strings and binaries are lists of uint8. A padded column is followed by ``<column>_lengths``. Lists of
lists, of strings and of structs, and lists inside structs, stay lists. Single rows have their lists as they are.

``decode`` is "image" or True, for all columns that can hold encoded images, or a dict of column to "image" or
``("image", mode)``; see `pictures` for the modes. Such columns are binaries, or structs with a field ``bytes``, as
Hugging Face writes them. The pictures of a batch are one array if all have the same shape, else an object array (in
torch a list) of one array a row. A null stays None.

Both are for numpy and torch; Arrow's batches and Python's values have the types that were published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError, FormatError
from dhtdata.gather.columns import Cut, items_dtype, objects, plain_type
from dhtdata.gather.gatherer import Gathers
from dhtdata.gather.leaving import Leaving
from dhtdata.gather.pictures import MODES, decode_picture, require_pillow
from dhtdata.gather.ragged import Ragged
from dhtdata.order import Dealt

KINDS = ("list", "padded", "jagged")
LENGTHS = "_lengths"
_SHAPED_FORMATS = ("numpy", "torch")


@dataclass(frozen=True)
class Collate:
    """``kind`` is "padded", with ``fill`` (None: zero) behind the end of each row, or "jagged"."""

    kind: str
    fill: Any = None

    @classmethod
    def of(cls, given: Any) -> Collate:
        """From a value of the argument ``collate``."""
        kind, fill = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
        if not isinstance(kind, str) or kind not in KINDS or (fill is not None and kind != "padded"):
            raise ConfigError(f"collate: {given!r} is none of {', '.join(KINDS)} or ('padded', value)")
        return cls(kind, fill)

    def fitting(self, name: str, kind: pa.DataType) -> Collate:
        """The same for a column of this type. ConfigError if its values do not lie end to end."""
        plain = plain_type(kind)
        dtype = np.dtype(np.uint8) if _is_text(plain) else items_dtype(plain)
        if dtype is None:
            raise ConfigError(
                f"collate: column {name!r} of type {kind} cannot be {self.kind}: lists of numbers, bools, dates and "
                "times can, of fixed-size lists of these, and strings and binaries as bytes; leave it a 'list'"
            )
        if self.fill is None:
            return self
        try:
            with np.errstate(invalid="ignore"):  # what NaN becomes is looked at below
                fill = np.full((), self.fill, dtype)[()]
        except (OverflowError, TypeError, ValueError) as failure:
            raise self._unfit(name, dtype) from failure
        if fill != self.fill and (self.fill == self.fill or fill == fill):
            raise self._unfit(name, dtype)
        return replace(self, fill=fill)

    def _unfit(self, name: str, dtype: np.dtype[Any]) -> ConfigError:
        return ConfigError(f"collate: {self.fill!r} is no value of {dtype}, of which column {name!r} is made")

    def shaped(self, name: str, column: Ragged, batches: tuple[int, ...]) -> dict[str, Any]:
        """The columns that this one becomes."""
        if self.kind == "jagged":
            return {name: column.jagged(batches)}
        return {name: column.padded(batches, self.fill), name + LENGTHS: column.lengths}


@dataclass(frozen=True)
class Shaping:
    """``collates`` and ``decodes`` by column.

    ``skips`` leaves out rows that do not decode; ``in_step`` says that every batch must then keep one at least.
    """

    collates: Mapping[str, Collate] = field(default_factory=dict)
    decodes: Mapping[str, str] = field(default_factory=dict)
    skips: bool = False
    in_step: bool = False
    place: str = ""
    leaving: Leaving = field(default_factory=Leaving, compare=False)

    @classmethod
    def of(cls, schema: pa.Schema, format: str, collate: Any, decode: Any, made_by_transform: bool) -> Shaping:
        """From the arguments of `dhtdata.mount`. ConfigError names what does not fit the columns."""
        collates = {name: how for name, how in _collates(schema, collate, made_by_transform) if how.kind != "list"}
        decodes = dict(_decodes(schema, decode))
        for name, used in (("collate", collates), ("decode", decodes)):
            if used and format not in _SHAPED_FORMATS:
                raise ConfigError(f"{name} makes arrays: mount with format='numpy' or 'torch', not {format!r}")
        for name, how in collates.items():
            if how.kind == "padded" and name + LENGTHS in schema.names:
                raise ConfigError(
                    f"collate: the lengths of column {name!r} would collide with column {name + LENGTHS!r}: leave one "
                    "of the two out of columns, or choose 'jagged'"
                )
        if both := sorted(collates.keys() & decodes.keys()):
            raise ConfigError(f"column {both[0]!r} cannot both be decoded and be {collates[both[0]].kind}")
        if decodes:
            require_pillow()
        return cls(collates, decodes)

    def arrays(
        self, gatherer: Gathers, dealt: Dealt, batched: bool, later: bool = False
    ) -> tuple[dict[str, Any], Dealt]:
        """Columns of what was dealt, in their shapes, and what was dealt without the rows that are skipped.

        ``later``: see `Gathers.numpy`.
        """
        ragged = self.collates if batched else ()
        columns = gatherer.numpy(dealt.rows, ragged, later)
        if not self.collates and not self.decodes:
            return columns, dealt
        pictures = {name: _decoded(columns[name], mode) for name, mode in self.decodes.items()}
        good = self._good(pictures, dealt)
        if not good.all():
            kept, dealt = self._without(good, dealt)
            columns = gatherer.numpy(dealt.rows, ragged, later)
            pictures = {name: [values[row] for row in kept.tolist()] for name, values in pictures.items()}
        batches = tuple(dict.fromkeys(dealt.bounds))
        shaped: dict[str, Any] = {}
        for name, column in columns.items():
            if isinstance(column, Ragged):
                shaped |= self.collates[name].shaped(name, column, batches)
            elif name in pictures:
                values = pictures[name]
                shaped[name] = _stacked(values, batches) if batched else _objects(values)
            else:
                shaped[name] = column
        return shaped, dealt

    def joined(self, name: str, rows: Sequence[Any]) -> dict[str, Any]:
        """What a transform returned for a column, row by row, as one batch."""
        how = self.collates[name]
        try:
            columns = how.shaped(name, Ragged.joined(rows), (0, len(rows)))
        except (TypeError, ValueError) as failure:
            raise ConfigError(
                f"collate: what the transform returned for column {name!r} cannot be {how.kind}: {failure}"
            ) from failure
        return {name: _only_piece(column) for name, column in columns.items()}

    def _good(self, pictures: Mapping[str, Sequence[_Picture]], dealt: Dealt) -> NDArray[np.bool_]:
        """Which rows decode. FormatError for the first that does not, unless such rows are skipped."""
        good = np.ones(dealt.rows.size, np.bool_)
        for name, values in pictures.items():
            for row in (row for row, value in enumerate(values) if isinstance(value, FormatError)):
                told = f"column {name!r} of {dealt.named(row, row + 1)} of {self.place} is no picture: {values[row]}"
                if not self.skips:
                    raise FormatError(f"{told} (in a loop, on_error='skip' leaves such rows out)")
                self.leaving.tell(told)
                good[row] = False
        return good

    def _without(self, good: NDArray[np.bool_], dealt: Dealt) -> tuple[NDArray[np.int64], Dealt]:
        """Positions of the rows that are left, and those rows as dealt; under "pad" others stand in for the rest."""
        kept, valid, bounds = [], [], [0]
        for first, stop in pairwise(dealt.bounds):
            left = first + np.flatnonzero(good[first:stop])
            if self.in_step and not left.size:
                raise ConfigError(
                    f"no picture of a batch of {stop - first} rows of {self.place} decodes: nothing is left to "
                    "keep this rank in step with the others"
                )
            if dealt.valid is not None and left.size:
                missing = stop - first - left.size
                valid += [dealt.valid[left], np.zeros(missing, np.bool_)]
                left = np.concatenate([left, np.repeat(left[:1], missing)])
            kept.append(left)
            bounds.append(bounds[-1] + left.size)
        positions = np.concatenate(kept)
        marks = None if dealt.valid is None else np.concatenate([np.empty(0, np.bool_), *valid])
        return positions, replace(dealt, rows=dealt.rows[positions], bounds=tuple(bounds), valid=marks)


AS_STORED = Shaping()
"""No shape is asked for."""

_Picture = NDArray[Any] | FormatError | None


def _decoded(column: Any, mode: str) -> list[_Picture]:
    return [_picture(encoded, mode) for encoded in _encoded(column)]


def _picture(encoded: bytes | str | None, mode: str) -> _Picture:
    if encoded is None:
        return None
    if isinstance(encoded, str):
        return FormatError(f"there are no bytes, only the path {encoded!r} of somebody's file")
    try:
        return decode_picture(encoded, mode)
    except FormatError as failure:
        return failure


def _encoded(column: Any) -> list[bytes | str | None]:
    """Bytes; the path where a struct has nothing else."""
    if not isinstance(column, dict):
        return list(column[:])
    paths = column.get("path", [None] * len(column["bytes"]))
    return [path if held is None else held for held, path in zip(column["bytes"], paths, strict=True)]


def _stacked(pictures: Sequence[Any], batches: tuple[int, ...]) -> Cut:
    pieces = []
    for first, stop in pairwise(batches):
        of_batch = pictures[first:stop]
        alike = len({None if one is None else (one.shape, one.dtype) for one in of_batch}) == 1
        pieces.append(np.stack(of_batch) if alike and of_batch[0] is not None else _objects(of_batch))
    return Cut(pieces)


def _objects(pictures: Sequence[Any]) -> NDArray[np.object_]:
    """Writable pictures, none of them shared."""
    return objects([None if one is None else one.copy() for one in pictures])


def _only_piece(column: Any) -> Any:
    if isinstance(column, dict):
        return {name: _only_piece(child) for name, child in column.items()}
    return column.pieces[0] if isinstance(column, Cut) else column


def _collates(schema: pa.Schema, given: Any, made_by_transform: bool) -> Iterator[tuple[str, Collate]]:
    if isinstance(given, Mapping):
        for name, how in given.items():
            collate = Collate.of(how)
            if made_by_transform or collate.kind == "list":  # only its samples tell what a transform makes
                yield name, collate
            else:
                yield name, collate.fitting(name, _kind_of("collate", schema, name))
        return
    if given is None or (collate := Collate.of(given)).kind == "list":
        return
    if made_by_transform:
        raise ConfigError("collate: give a dict that says which columns of what transform returns are meant")
    found = [column for column in schema if items_dtype(column.type) is not None]
    if not found:
        raise ConfigError(
            f"collate: no column can be {collate.kind} but strings and binaries, which have to be named in a dict"
        )
    for column in found:
        yield column.name, collate.fitting(column.name, column.type)


def _decodes(schema: pa.Schema, given: Any) -> Iterator[tuple[str, str]]:
    if isinstance(given, Mapping):
        for name, how in given.items():
            mode = _mode(how)
            kind = _kind_of("decode", schema, name)
            if not _holds_pictures(kind):
                raise ConfigError(
                    f"decode: column {name!r} of type {kind} holds no encoded images: binaries can, and structs with a "
                    "field 'bytes'"
                )
            yield name, mode
        return
    if given is None or given is False:
        return
    mode = _mode("image" if given is True else given)
    found = [column.name for column in schema if _holds_pictures(column.type)]
    if not found:
        raise ConfigError("decode: no chosen column is binary or a struct with a field 'bytes', so none holds images")
    yield from ((name, mode) for name in found)


def _mode(given: Any) -> str:
    kind, mode = given if isinstance(given, tuple | list) and len(given) == 2 else (given, MODES[0])
    if kind != "image" or mode not in MODES:
        raise ConfigError(f"decode: {given!r} is neither 'image' nor ('image', mode) with a mode of {', '.join(MODES)}")
    return str(mode)


def _kind_of(argument: str, schema: pa.Schema, name: str) -> pa.DataType:
    if name not in schema.names:
        raise ConfigError(f"{argument}: there is no column {name!r}: the chosen ones are {', '.join(schema.names)}")
    return schema.field(name).type


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or _is_binary(kind))


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _holds_pictures(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(plain_type(kind.field("bytes").type))
    return _is_binary(kind)
