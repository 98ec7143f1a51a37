"""What a target means to a store: which version of which dataset, without asking anybody."""

from __future__ import annotations

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, IntegrityError, NotFoundError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord
from dhtdata.formats.ticket import PREFIX, LocalName, Target, Ticket
from dhtdata.store.store import Store

PREFIX_DIGITS = 8


def name_records(store: Store) -> list[NameRecord]:
    """Every name that the store has a record of, by name and publisher."""
    records = [signed.record for signed in store.names() if isinstance(signed.record, NameRecord)]
    return sorted(records, key=lambda record: (record.name, record.delegation.root))


def version_of(target: Target, store: Store) -> Digest:
    """Manifest digest of a target. NotFoundError if the store does not know it, ConfigError if it is ambiguous.

    A name without a sequence is the newest version that the store knows; a digest stands for itself.
    """
    if isinstance(target, Ticket):
        target = target.target
    if isinstance(target, LocalName):
        target = meaning_of(target, store)
    if isinstance(target, Digest):
        return target
    record = store.name_record(target.publisher, target.name).record
    if not isinstance(record, NameRecord) or target.sequence not in (None, record.sequence):
        raise NotFoundError(f"{target} is not in this store: fetch it with dhtdata get")
    return record.manifest


def meaning_of(target: LocalName, store: Store) -> Name | Digest:
    """What a bare name stands for: one publisher's name, else one manifest called so or whose digest starts so."""
    named = [record for record in name_records(store) if record.name == target.name]
    if len(named) > 1:
        shown = " or ".join(str(Name(record.delegation.root, record.name)) for record in named)
        raise ConfigError(f"{target.name!r} has {len(named)} publishers in this store: say which, {shown}")
    if named:
        return Name(named[0].delegation.root, target.name)
    digests = [entry.digest for entry in store.manifests()]
    found = [digest for digest in digests if _called(digest, target.name, store)]
    if not found and len(target.name) >= PREFIX_DIGITS:
        found = [digest for digest in digests if digest.hex().startswith(target.name)]
    if len(found) > 1:
        raise ConfigError(
            f"{target.name!r} stands for {len(found)} datasets in this store: give the manifest digest, see dhtdata ls"
        )
    if not found:
        if target.name.startswith(PREFIX):
            raise NotFoundError(f"{target.name} looks like a ticket that was cut short: copy it again, whole")
        raise NotFoundError(
            f"no dataset called {target.name!r} is in the store {store.path}: see dhtdata ls, or give a ticket or "
            "dhtdata://PUBLISHER/NAME"
        )
    return found[0]


def _called(digest: Digest, name: str, store: Store) -> bool:
    try:
        return Manifest.decode(store.read(digest, limit_bytes=MAX_MANIFEST_BYTES)).name == name
    except (NotFoundError, IntegrityError):
        return False  # listed, but not here (any more): it has no name to go by
