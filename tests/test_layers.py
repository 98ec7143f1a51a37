"""The three laws of the house: layers, wall, doors.

1. *Layers*: a module imports only from strictly lower layers. `LAYERS` lists all modules, lowest first.
2. *Wall*: the network side and the table side never import each other; only the command line sees both.
3. *Doors*: a foreign package enters through named modules only.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "dhtdata"

LAYERS: list[list[str]] = [
    ["counts", "durations", "errors"],
    ["digest"],
    ["signing"],
    ["formats", "formats.codec", "formats.names"],
    ["formats.addresses", "network"],
    ["formats.web_seeds"],
    ["formats.blocks", "formats.manifest", "formats.records", "formats.schema"],
    ["formats.index", "formats.packed", "formats.ticket", "packing"],
    ["formats.contents"],
    ["formats.statistics"],
    ["config"],
    ["order.permutation", "order.shares", "order.state"],
    ["order.mix_state"],
    ["order.epoch"],
    ["order.turns"],
    ["order.steps"],
    ["order.mixing"],
    ["order"],
    ["store.filesystem", "store.index", "store.reach"],
    ["store.foresight", "store.places"],
    ["store.blobs", "store.catalogue"],
    ["store.packed", "store.partial"],
    ["store.room"],
    ["store.store"],
    ["store.meaning"],
    ["store"],
    ["control.dht", "control.foreseeing", "control.lock"],
    ["control.protocol"],
    ["control.spawn"],
    ["control.client"],
    ["control.reading"],
    ["control"],
    [
        "dht.clock",
        "dht.identity",
        "dht.quotas",
        "dht.rates",
        "dht.round_trips",
        "dht.reachability",
        "dht.routing",
        "dht.rules",
        "dht.statefile",
    ],
    ["dht.envelope", "dht.holdings", "dht.lookup", "dht.remembered", "dht.schedule", "dht.size"],
    ["dht.archive", "dht.cookies", "dht.endpoint", "dht.messages", "dht.region", "dht.search", "dht.sweep"],
    ["dht.keeping", "dht.protocol"],
    ["dht.asking"],
    ["dht.announcing"],
    ["dht.overlay"],
    ["dht.status"],
    ["dht.node"],
    ["dht"],
    [
        "tables",
        "tables.cutting",
        "tables.fingerprint",
        "tables.parameters",
        "tables.sizes",
        "tables.sources.files",
        "tables.sources.reading",
        "tables.sources.values",
    ],
    [
        "tables.forms",
        "tables.groups",
        "tables.layout",
        "tables.schema",
        "tables.sources.folder",
        "tables.sources.ipc",
        "tables.sources.objects",
        "tables.sources.parquet",
        "tables.sources.text",
        "tables.statistics",
    ],
    ["tables.canonical", "tables.ipc", "tables.sources.opened"],
    ["tables.decoding", "tables.logical", "tables.reader", "tables.sources"],
    ["tables.check"],
    ["filters.evaluate", "filters.literals", "filters.selection", "filters.text", "filters.tree"],
    ["filters.bounds", "filters.kept", "filters.terms"],
    ["filters.parse", "filters.prune"],
    ["filters.filter"],
    ["filters"],
    ["transfer.meters"],
    ["transfer", "transfer.answers", "transfer.dialling", "transfer.folders", "transfer.masks", "transfer.membership"],
    ["transfer.providers", "transfer.rates", "transfer.search", "transfer.sending"],
    [
        "transfer.availability",
        "transfer.client",
        "transfer.layout",
        "transfer.uploads",
        "transfer.wire",
    ],
    ["transfer.packer", "transfer.picker"],
    ["transfer.holdings", "transfer.members", "transfer.orders", "transfer.packed"],
    ["transfer.planner"],
    ["transfer.threads"],
    ["transfer.server", "transfer.swarm"],
    ["transfer.jobs"],
    ["transfer.fetcher"],
    ["mirror"],
    ["publish.destination", "publish.pending", "publish.version"],
    ["publish.shards"],
    ["publish.splits"],
    ["publish.dataset"],
    ["publish"],
    ["peer.addresses", "peer.announcer", "peer.control_server", "peer.tally"],
    ["peer.collect", "peer.figures"],
    ["peer.known"],
    ["peer.finder"],
    ["peer.swarms"],
    ["peer.ensuring", "peer.resolve"],
    ["peer.dht_desk", "peer.seeder"],
    ["peer.desk"],
    ["peer.peer"],
    ["peer.starting"],
    ["peer", "peer.__main__"],
    ["torch.arenas", "torch.plain", "torch.ranks", "torch.sharding", "torch.workers"],
    ["vault", "vault.crew", "vault.shards"],
    ["vault.blocks", "vault.opened"],
    ["vault.trust"],
    ["vault.vault"],
    ["vault.horizon"],
    ["vault.readahead"],
    ["gather", "gather.leaving", "gather.pictures", "gather.planes", "gather.texts"],
    ["gather.columns"],
    ["gather.ragged", "gather.runs"],
    ["gather.chart"],
    ["gather.gatherer"],
    ["torch.lying"],
    ["torch.parcels", "torch.tensors"],
    ["gather.shaping", "gather.weave"],
    ["gather.parcels"],
    ["mount.arguments"],
    ["mount.frames", "mount.orphans", "mount.plain", "mount.ranks", "mount.resolve", "mount.scanning"],
    ["mount.page", "mount.speed"],
    ["mount.meter"],
    ["mount.epochs", "mount.plan", "mount.transform", "mount.view"],
    ["mount.filtering", "mount.loop", "mount.map_style", "mount.progress"],
    ["mount.pipeline"],
    ["mount.mixed", "mount.stream"],
    ["mount.dataset"],
    ["mount.mix_modes"],
    ["mount.mix"],
    ["mount"],
    ["torch.loader"],
    ["torch"],
    ["export"],
    ["", "entrances"],
    ["doctor"],
    ["cli", "cli.exits", "cli.output", "cli.values"],
    ["cli.held", "cli.session", "cli.summary"],
    ["cli.limits"],
    ["cli.dht_view", "cli.transfer_view"],
    ["cli.dht", "cli.filling", "cli.locating", "cli.seeding", "cli.watching"],
    ["cli.fetching", "cli.joining", "cli.keeping", "cli.publishing"],
    ["cli.describing", "cli.planning"],
    ["cli.app"],
    ["__main__"],
]

NETWORK = ("dht", "transfer", "peer")
TABLES = ("tables", "filters", "publish", "vault", "gather", "mount", "torch", "export")

DOORS: dict[str, tuple[str, ...]] = {
    "blake3": ("digest",),
    "cryptography": ("signing",),
    "msgspec": ("formats", "control.protocol"),
    "flatbuffers": ("tables.ipc",),
    "pyarrow": ("tables", "filters", "publish", "vault", "gather", "mount", "torch", "export"),
    "numpy": ("order", "tables", "filters", "publish", "vault", "gather", "mount", "torch"),
    "torch": ("torch",),
    "accelerate": ("torch.sharding",),
    "PIL": ("gather.pictures",),
    "pandas": ("mount.frames",),
    "polars": ("mount.frames",),
    "aiohttp": ("transfer",),
    "yarl": ("transfer.client",),
    "kademlia": ("dht",),
    "rpcudp": ("dht",),
    "umsgpack": ("dht",),
    "zstandard": ("packing",),
    "sqlite3": ("store", "dht.archive"),
    "typer": ("cli",),
    "rich": ("cli", "mount.progress", "mount.scanning"),
    "platformdirs": ("config",),
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``dhtdata`` (the package itself is "")."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of this package, foreign top-level packages) that a file imports, wherever the statement stands."""
    ours: set[str] = set()
    foreign: set[str] = set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, member in names:
            top, _, below = module.partition(".")
            if top != "dhtdata":
                foreign.add(top)
            elif member is not None and (deeper := f"{below}.{member}".lstrip(".")) in known:
                ours.add(deeper)
            else:
                ours.add(below)
    return ours, foreign - set(sys.stdlib_module_names) | (foreign & {"sqlite3"})


def below(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def breaches_of_layers(found: dict[str, set[str]], layers: list[list[str]]) -> list[str]:
    rank = {module: number for number, layer in enumerate(layers) for module in layer}
    return [
        f"{module} imports {used}"
        for module, uses in found.items()
        for used in sorted(uses)
        if rank[used] >= rank[module]
    ]


def breaches_of_the_wall(found: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {used}"
        for module, uses in found.items()
        for used in sorted(uses)
        if (below(module, NETWORK) and below(used, TABLES))
        or (below(module, TABLES) and below(used, NETWORK))
        or (not below(module, ("cli", "__main__")) and module != "" and below(used, ("cli",)))
    ]


def breaches_of_doors(found: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {package}"
        for module, packages in found.items()
        for package in sorted(packages)
        if not below(module, DOORS.get(package, ()))
    ]


OURS = {name: imports(path)[0] for name, path in modules().items()}
FOREIGN = {name: imports(path)[1] for name, path in modules().items()}


def test_every_module_has_exactly_one_layer() -> None:
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == sorted(modules())


def test_a_module_imports_only_from_strictly_lower_layers() -> None:
    assert breaches_of_layers(OURS, LAYERS) == []


def test_network_side_and_table_side_never_meet() -> None:
    assert breaches_of_the_wall(OURS) == []


def test_foreign_packages_enter_through_their_doors() -> None:
    assert breaches_of_doors(FOREIGN) == []


@pytest.mark.parametrize(
    ("module", "used"), [("dht.node", "tables.ipc"), ("mount", "transfer.fetcher"), ("store", "cli.output")]
)
def test_a_planted_breach_of_the_wall_is_seen(module: str, used: str) -> None:
    assert breaches_of_the_wall({module: {used}}) == [f"{module} imports {used}"]


def test_a_planted_upward_import_is_seen() -> None:
    assert breaches_of_layers({"low": {"high"}, "high": {"low"}}, [["low"], ["high"]]) == ["low imports high"]


def test_a_planted_import_through_the_wrong_door_is_seen() -> None:
    assert breaches_of_doors({"store.index": {"pyarrow"}}) == ["store.index imports pyarrow"]


def environment_reads(path: Path) -> list[str]:
    """Uses of ``os.environ`` and ``os.getenv``."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]


def test_the_environment_is_read_in_config_alone() -> None:
    readers = [name for name, path in modules().items() if environment_reads(path)]
    assert readers == ["config"]
