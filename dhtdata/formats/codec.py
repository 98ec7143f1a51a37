"""The one way in and out of bytes: size, then typed parse, then canonical form (door of ``msgspec``).

Encoded values are canonical: map keys sorted, defaults left out, no white space. `decode_json` and
`decode_msgpack` encode what they parsed and compare, so that one value has exactly one encoding and a digest of the
bytes is a digest of the value. Anything else is a `FormatError` that names the object.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import msgspec

from dhtdata.digest import Digest
from dhtdata.errors import FormatError

MAX_EXT_ENTRIES = 64


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of structs that are parts of a format."""


class Versioned(Protocol):
    @property
    def version(self) -> int: ...


class _VersionOnly(msgspec.Struct):
    version: int = 0


_T = TypeVar("_T")
_MALFORMED = (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, ValueError, TypeError)


def _encode_json_hook(value: Any) -> Any:
    if isinstance(value, Digest):
        return value.hex()
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _encode_msgpack_hook(value: Any) -> Any:
    if isinstance(value, Digest):
        return bytes(value)
    raise TypeError(f"no msgpack form for {type(value).__name__}")


def _decode_hook(expected: type, value: Any) -> Any:
    if expected is Digest:
        if isinstance(value, str):
            return Digest.parse(value)
        if isinstance(value, bytes):
            return Digest(value)
    raise FormatError(f"expected {expected.__name__}, got {type(value).__name__}")


_JSON = msgspec.json.Encoder(enc_hook=_encode_json_hook, order="sorted")
_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_encode_msgpack_hook, order="sorted")


def encode_json(value: Any) -> bytes:
    return _JSON.encode(value)


def encode_msgpack(value: Any) -> bytes:
    return _MSGPACK.encode(value)


def decode_json(data: bytes, expected: type[_T], *, limit_bytes: int, what: str) -> _T:
    """Parse canonical JSON. FormatError names ``what`` and the reason; never another exception."""
    _check_size(data, limit_bytes, what)
    try:
        value = msgspec.json.decode(data, type=expected, dec_hook=_decode_hook)
    except (*_MALFORMED, FormatError) as failure:
        raise _malformed(failure, what, data, msgspec.json.Decoder(_VersionOnly)) from failure
    _check_canonical(data, _JSON.encode(value), what)
    return value


def decode_msgpack(data: bytes, expected: type[_T], *, limit_bytes: int, what: str) -> _T:
    """Parse canonical msgpack. FormatError names ``what`` and the reason; never another exception."""
    _check_size(data, limit_bytes, what)
    try:
        value = msgspec.msgpack.decode(data, type=expected, dec_hook=_decode_hook)
    except (*_MALFORMED, FormatError) as failure:
        raise _malformed(failure, what, data, msgspec.msgpack.Decoder(_VersionOnly)) from failure
    _check_canonical(data, _MSGPACK.encode(value), what)
    return value


def check_version(value: Versioned, newest: int, what: str) -> None:
    """FormatError unless the version is one this program reads: 1 to ``newest``."""
    if not 1 <= value.version <= newest:
        raise FormatError(_unknown_version(value.version, what))


def check_ext(ext: dict[str, str], what: str) -> None:
    """The ignorable map stays small: at most 64 entries (their size is bounded by the format's own cap)."""
    if len(ext) > MAX_EXT_ENTRIES:
        raise FormatError(f"{what}: ext has {len(ext)} entries, at most {MAX_EXT_ENTRIES} are allowed")


def _check_size(data: bytes, limit_bytes: int, what: str) -> None:
    if len(data) > limit_bytes:
        raise FormatError(f"{what} has {len(data)} bytes, at most {limit_bytes} are allowed")


def _check_canonical(data: bytes, encoded: bytes, what: str) -> None:
    if data != encoded:
        raise FormatError(f"{what} is not in canonical form")


def _unknown_version(version: int, what: str) -> str:
    return f"{what} has format version {version}, which this dhtdata does not read: upgrade dhtdata"


def _malformed(failure: Exception, what: str, data: bytes, peek: Any) -> FormatError:
    # A newer version may carry fields that the typed parse refuses: say "upgrade" rather than "malformed".
    try:
        version = peek.decode(data).version
    except _MALFORMED:
        version = 1
    if version > 1:
        return FormatError(_unknown_version(version, what))
    return FormatError(f"{what} is malformed: {failure}")
