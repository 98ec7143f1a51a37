"""``ls verify pin unpin rm gc``: what the store holds, and whether it still does."""

from __future__ import annotations

from typing import Annotated

import typer

from dhtdata.cli.filling import fill
from dhtdata.cli.held import Held, all_held, held, known_names
from dhtdata.cli.output import number, plain, short, size, table
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
    CacheLimitOption,
    HomeOption,
    JsonOption,
    NetworkOption,
    Session,
    StoreOption,
    TargetArgument,
    TimeoutOption,
    WebSeedsOption,
    session,
)
from dhtdata.counts import counted
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, IntegrityError, NotFoundError
from dhtdata.formats.ticket import parse_target
from dhtdata.store import Store, version_of


def ls(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the datasets of the store.

    Example: `dhtdata ls`
    """
    opened = session(store, home, as_json)
    with opened.store() as blobs:
        found = list(all_held(blobs))
        seeded = _seeded(opened, blobs)
        readable = {entry.digest for entry in found}
        damaged = [entry.digest for entry in blobs.manifests() if entry.digest not in readable]
    described = [_describe(entry, entry.digest in seeded) for entry in found]
    document = {"datasets": described, "damaged": [digest.hex() for digest in damaged]}
    for digest in damaged:
        opened.output.note(f"The description of {digest} is lost or damaged: dhtdata verify repairs it.")
    if not found:
        if damaged:
            opened.output.result(document)
            return
        opened.output.result(document, f"The store {opened.settings.store} is empty: dhtdata publish or get fills it.")
        return
    rows = [
        (
            entry.label,
            str(entry.known.name.sequence) if entry.known else "",
            short(entry.digest),
            number(entry.contents.row_count) if entry.contents else "?",
            size(entry.bytes_total) if entry.contents else "?",
            entry.share,
            "yes" if entry.pinned else "",
            "now" if entry.digest in seeded else "",
        )
        for entry in found
    ]
    columns = ("name", "sequence", "version", "rows", "size", "held", "pinned", "seeded")
    opened.output.result(document, table("", *columns, rows=rows, right=("sequence", "rows", "size", "held")))


def verify(
    target: TargetArgument = "",
    repair: Annotated[bool, typer.Option(help="Fetch what is damaged or missing from peers and web seeds.")] = True,
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = SEARCH_S,
    as_json: JsonOption = False,
) -> None:
    """Read every stored byte again, and repair damage from peers and web seeds.

    Damaged blobs are set aside first. With TARGET, that dataset is also completed; otherwise every dataset that lost
    something to this run is. Ends with exit code 4 if damage remains, 5 if what else is missing cannot be had.

    Example: `dhtdata verify`
    """
    opened = session(store, home, as_json, bootstrap=bootstrap, network=network, web_seeds=web_seeds)
    if target:
        opened = opened.entering(parse_target(target))
    with opened.store() as blobs:
        wanted = [held(blobs, target).digest] if target else []
        before = {entry.digest: _share(blobs, entry.digest) for entry in blobs.manifests()}
        names = {known.manifest: known.name.name for known in known_names(blobs)}
        checked, damaged = _scrub(opened, blobs)
        after = {digest: _share(blobs, digest) for digest in before}
        hurt = [digest for digest, share in before.items() if after[digest][0] < 0 or _less(after[digest], share)]
        failures = _repair(opened, blobs, list(dict.fromkeys([*wanted, *hurt])), timeout) if repair else []
        remaining = [digest for digest in damaged if not blobs.has(digest)]
    document = {
        "checked": checked,
        "damaged": [digest.hex() for digest in damaged],
        "repaired": len(damaged) - len(remaining),
        "remaining": [digest.hex() for digest in remaining],
        "failures": failures,
    }
    if remaining:
        mending = " and ".join(f"dhtdata verify {names.get(digest, digest.hex())}" for digest in hurt[:3])
        said = "; ".join(failures) or (f"to repair them, run {mending}" if hurt else "no listed dataset needs them")
        are = "is" if len(remaining) == 1 else "are"
        first = f"{number(len(remaining))} of {counted(checked, 'blob')} {are} damaged and set aside"
        raise IntegrityError(f"{first}, the first is {remaining[0]}: {said}", culprit=str(opened.settings.store))
    if failures:
        raise NotFoundError(f"what is stored is good, but what is missing could not be had: {'; '.join(failures)}")
    sentence = f"{counted(checked, 'blob')} checked, all good."
    if damaged:
        sentence = f"{counted(checked, 'blob')} checked, {number(len(damaged))} damaged and repaired."
    opened.output.result(document, sentence)


def pin(
    target: TargetArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Keep a dataset: it is never evicted, and a seed serves it.

    Example: `dhtdata pin my-dataset`
    """
    _set_pin(session(store, home, as_json), target, pinned=True)


def unpin(
    target: TargetArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Let a dataset be evicted when the cache limit asks for room; a running seed stops announcing it.

    Example: `dhtdata unpin my-dataset`
    """
    _set_pin(session(store, home, as_json), target, pinned=False)


def rm(target: TargetArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take a dataset off the list of this store and of a running seed; its bytes go with the next gc.

    Example: `dhtdata rm my-dataset`
    """
    opened = session(store, home, as_json)
    with opened.store() as blobs:
        digest = version_of(parse_target(target), blobs)
        name = next((entry.label for entry in all_held(blobs) if entry.digest == digest), None)
        blobs.remove_manifest(digest)
        _tell(opened, blobs, digest)
    document = {"removed": digest.hex(), "name": name}
    shown = f"{name} ({digest})" if name else str(digest)
    opened.output.result(document, plain(f"Removed {shown}. dhtdata gc frees its bytes."))


def gc(
    store: StoreOption = None,
    home: HomeOption = None,
    cache_limit: CacheLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete bytes that no listed dataset needs.

    Example: `dhtdata gc`
    """
    opened = session(store, home, as_json, cache_limit=cache_limit)
    with opened.store() as blobs:
        freed = blobs.gc()
    opened.output.result({"freed_bytes": freed}, f"Freed {size(freed)}.")


def _seeded(opened: Session, blobs: Store) -> set[Digest]:
    with opened.running_peer(blobs) as peer:
        if peer is None:
            return set()
        seen = peer.status()
        return {entry.manifest for entry in seen.datasets} if seen.kind == "seed" else set()


def _describe(entry: Held, seeded: bool) -> dict[str, object]:
    return {
        "name": entry.label,
        "uri": str(entry.known.name) if entry.known else None,
        "sequence": entry.known.name.sequence if entry.known else None,
        "stale": entry.known.stale if entry.known else None,
        "manifest": entry.digest.hex(),
        "contents": entry.manifest.contents.hex(),
        "rows": entry.contents.row_count if entry.contents else None,
        "bytes": entry.bytes_total if entry.contents else None,
        "bytes_held": entry.bytes_held,
        "pinned": entry.pinned,
        "seeded": seeded,
    }


def _share(blobs: Store, manifest: Digest) -> tuple[int, int]:
    """What the store has of a dataset: bytes, -1 if even its manifest or contents are not here; and blobs it lacks."""
    lacking = len(blobs.missing_blobs(manifest))
    try:
        return blobs.completeness(manifest).bytes_held, lacking
    except NotFoundError:
        return -1, lacking


def _less(now: tuple[int, int], before: tuple[int, int]) -> bool:
    return now[0] < before[0] or now[1] > before[1]


def _scrub(opened: Session, blobs: Store) -> tuple[int, list[Digest]]:
    usage = blobs.usage()
    checked, damaged, total = 0, [], usage.blobs + usage.packed
    with opened.output.progress("checking", number) as report:
        for seen in blobs.scrub():
            checked += 1
            if seen.state != "ok" and not (seen.packed and blobs.has(seen.digest)):
                damaged.append(seen.digest)
            report(checked, total)
    return checked, damaged


def _repair(opened: Session, blobs: Store, manifests: list[Digest], timeout_s: float) -> list[str]:
    """Fetch these datasets again; what went wrong, one sentence each."""
    failures: list[str] = []
    for manifest in manifests:
        try:
            with opened.peer(blobs) as peer:
                peer.resolve(opened.asking(manifest), timeout_s)
                fill(opened, peer, manifest, timeout_s, title="repairing")
        except DhtDataError as failure:
            failures.append(str(failure))
    return failures


def _set_pin(opened: Session, target: str, *, pinned: bool) -> None:
    with opened.store() as blobs:
        digest = version_of(parse_target(target), blobs)
        if digest not in {entry.digest for entry in blobs.manifests()}:
            raise NotFoundError(f"{target[:80]} is not in this store: fetch it with dhtdata get")
        if pinned:
            blobs.pin(digest)
        else:
            blobs.unpin(digest)
        _tell(opened, blobs, digest)
    word = "Pinned" if pinned else "Unpinned"
    opened.output.result({"manifest": digest.hex(), "pinned": pinned}, plain(f"{word} {digest}."))


def _tell(opened: Session, blobs: Store, manifest: Digest) -> None:
    """A running seed takes up what is pinned now, and lets go of what is not any more."""
    with opened.running_peer(blobs) as peer:
        if peer is not None:
            peer.announce(manifest)
