"""Networks: what separates one swarm from another.

The *public* network is everybody's. A *private* network is whoever holds its secret: every datagram and every HTTP
request of it carries an authentication code made with the secret, and whoever has none gets silence, so a stranger
cannot even tell that somebody is there.

A network file holds one line, ``dhtdata-network-1 `` and 64 hexadecimal digits, with mode 0600. Rejected: files that
others may read, other first words, other lengths.

Why two strengths of identity: in the public network an identifier costs work (`Network.difficulty_bits`), so that
nobody fills a neighbourhood for nothing. Who holds the secret of a private network is trusted not to.
"""

from __future__ import annotations

import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dhtdata.digest import Buffer, domain_key, keyed
from dhtdata.errors import ConfigError, FormatError, StoreError

SECRET_BYTES = 32
CODE_BYTES = 16
PUBLIC_DIFFICULTY_BITS = 16
_WORD = "dhtdata-network-1"
_LIMIT_BYTES = 256
_MARK = "private-network"
_PUBLIC_CODE = domain_key("dhtdata public network", length=CODE_BYTES)


@dataclass(frozen=True)
class Network:
    """``secret`` is None for the public network. ``difficulty_bits``: zero bits that a node's identifier must show."""

    secret: bytes | None = field(default=None, repr=False)
    difficulty_bits: int = 0

    def __post_init__(self) -> None:
        if self.secret is not None and len(self.secret) != SECRET_BYTES:
            raise FormatError(f"the secret of a network has {SECRET_BYTES} bytes, this one has {len(self.secret)}")

    def code(self, *parts: Buffer) -> bytes:
        """16 bytes that only members can make for these bytes; in the public network always the same 16."""
        return _PUBLIC_CODE if self.secret is None else keyed(self.secret, *parts, length=CODE_BYTES)

    def member_made(self, code: Buffer, *parts: Buffer) -> bool:
        """Whether a member of this network made the code for these bytes. Takes equally long for every wrong code."""
        return hmac.compare_digest(code, self.code(*parts))

    @property
    def fingerprint(self) -> str:
        """16 digits that tell networks apart and give nothing away; ``public`` for the public one."""
        return "public" if self.secret is None else domain_key("dhtdata network", self.secret, length=8).hex()


PUBLIC = Network(difficulty_bits=PUBLIC_DIFFICULTY_BITS)


def load_network(path: Path) -> Network:
    """The private network of a file. ConfigError says what is wrong with the file, and what to do."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_LIMIT_BYTES)
    except FileNotFoundError as failure:
        raise ConfigError(
            f"there is no network file {path}: get it from a member, or make one with dhtdata network"
        ) from failure
    except OSError as failure:
        raise ConfigError(f"network file {path} cannot be read: {failure.strerror}") from failure
    network = parse_network(text, str(path))
    if mode & 0o077:
        raise ConfigError(f"network file {path} can be read by others: run chmod 600 {path}")
    return network


def network_of_store(store: Path, path: Path | None, *, empty: bool) -> Network:
    """The network that a store's peer enters: the file's, or the public one.

    A store that was in a private network stays in it: else its datasets would become public the day somebody forgets
    to name the network. ConfigError says so. An ``empty`` store, with no datasets, has nothing to give away.
    """
    network = network_at(path)
    mark = store / _MARK
    if not empty:
        check_store(store, network)
    try:
        if network.secret is not None:
            mark.write_text(f"{network.fingerprint}\n", "ascii")
        elif empty:
            mark.unlink(missing_ok=True)
    except OSError as failure:
        raise StoreError(f"{mark} cannot be used: {failure.strerror}") from failure
    return network


def check_store(store: Path, network: Network) -> None:
    """ConfigError if the store belongs to another network."""
    mark = store / _MARK
    try:
        before = mark.read_text("ascii", "replace").strip() if mark.exists() else ""
    except OSError as failure:
        raise StoreError(f"{mark} cannot be used: {failure.strerror}") from failure
    if before and before != network.fingerprint:
        raise ConfigError(
            f"the store {store} belongs to the private network {before}, not to {_named(network)}: "
            "name its file with --network, or use another store (--store)"
        )


def _named(network: Network) -> str:
    return "the public one" if network.secret is None else network.fingerprint


def parse_network(text: bytes, what: str) -> Network:
    """From the bytes of a network file."""
    word, _, digits = text.decode("ascii", "replace").strip().partition(" ")
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if word != _WORD or len(secret) != SECRET_BYTES:
        raise ConfigError(f"{what} holds no secret of a network: get the file from a member again, whole")
    return Network(secret)


def save_network(path: Path, network: Network) -> None:
    """Write a new network file, mode 0600. ConfigError if there is a file already: a secret is never overwritten."""
    if network.secret is None:
        raise ConfigError("the public network has no secret to save")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_WORD} {network.secret.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as failure:
        raise ConfigError(f"{path} is there already: it stays as it is, choose another name") from failure
    except FileNotFoundError as failure:
        raise ConfigError(f"there is no folder {path.parent} for the network file: make it first") from failure
    except OSError as failure:
        raise StoreError(f"network file {path} cannot be written: {failure.strerror}") from failure


def network_at(path: Path | None) -> Network:
    """The private network of a file, or the public one if no file is named."""
    return PUBLIC if path is None else load_network(path)


def keep_network(folder: Path, network: Network) -> Path:
    """Its file in a folder of networks, named by fingerprint; made (0600, folder 0700) if it is not there.

    Appears whole or not at all, however many ask at once.
    """
    path = folder / f"{network.fingerprint}.network"
    if path.exists() and load_network(path) == network:
        return path
    temporary = folder / f".{network.fingerprint}.{os.urandom(4).hex()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        save_network(temporary, network)
        temporary.replace(path)
    except OSError as failure:
        raise StoreError(f"network file {path} cannot be written: {failure.strerror}") from failure
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def new_network() -> Network:
    """A private network that nobody is in yet."""
    return Network(os.urandom(SECRET_BYTES))
