from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError, IntegrityError, StoreError
from dhtdata.signing import Ed25519, SigningKey, load_or_create_key, substitute, verify

KEY = SigningKey(bytes(range(32)))


def test_keys_and_signatures_are_ed25519() -> None:
    # Key of RFC 8032, section 7.1, test 1; the signature is ours, since a domain and a zero byte precede the message.
    key = SigningKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign("domain", b"message").hex() == (
        "cf53257f4e0011ef19aaaa4b7237bf53d169c52b14129c1ec29a2ed17c58ea24"
        "ce0ff45d428a11731e6d621712319a479a4ead386bc404ea540149ab9279c303"
    )
    Ed25519PublicKey.from_public_bytes(key.public).verify(key.sign("domain", b"message"), b"domain\0message")


@given(message=st.binary(), domain=st.text("abc ", min_size=1))
@settings(max_examples=30, deadline=None)
def test_what_was_signed_is_believed(message: bytes, domain: str) -> None:
    verify(KEY.public, KEY.sign(domain, message), domain, message)


@pytest.mark.parametrize(
    ("public", "signature", "domain", "message"),
    [
        (SigningKey(bytes(32)).public, KEY.sign("d", b"m"), "d", b"m"),
        (KEY.public, bytes(64), "d", b"m"),
        (KEY.public, KEY.sign("d", b"m")[:-1], "d", b"m"),
        (KEY.public, KEY.sign("d", b"m") + b"\0", "d", b"m"),
        (KEY.public, b"", "d", b"m"),
        (KEY.public, KEY.sign("d", b"m"), "e", b"m"),
        (KEY.public, KEY.sign("d", b"m"), "d", b"n"),
        (KEY.public, KEY.sign("d", b"m"), "d", b""),
        (KEY.public[:-1], KEY.sign("d", b"m"), "d", b"m"),
        (b"", KEY.sign("d", b"m"), "d", b"m"),
        (b"\xff" * 32, KEY.sign("d", b"m"), "d", b"m"),
    ],
    ids="another key|zeros|cut|longer|no signature|domain|message|no message|short key|no key|no point".split("|"),
)
def test_anything_else_is_not(public: bytes, signature: bytes, domain: str, message: bytes) -> None:
    with pytest.raises(IntegrityError, match="bad signature on a"):
        verify(public, signature, domain, message)


def test_a_domain_cannot_run_into_the_message() -> None:
    with pytest.raises(IntegrityError):
        verify(KEY.public, KEY.sign("ab", b"c"), "a", b"b\0c")


def test_generated_keys_differ() -> None:
    assert SigningKey.generate().public != SigningKey.generate().public


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path).public == key.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text() == key.seed().hex() + "\n"
    assert os.listdir(path.parent) == ["root.key"]


def test_threads_that_race_for_a_key_end_with_the_same(tmp_path: Path) -> None:
    path = tmp_path / "key"
    found: list[bytes] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(load_or_create_key(path).public)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["key"]


def test_who_comes_second_takes_the_winners_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    winner = SigningKey.generate()
    real = os.link

    def late(source: Path, target: Path) -> None:
        target.touch(0o600)
        target.write_text(winner.seed().hex())
        real(source, target)

    monkeypatch.setattr("os.link", late)
    assert load_or_create_key(path).public == winner.public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others: run chmod 600"):
        load_or_create_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "ab", "xy" * 32, "ab" * 31, "ab" * 33, "a" * 63])
def test_a_file_that_is_no_key_is_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError, match="does not hold a key"):
        load_or_create_key(path)
    assert path.read_text() == text


def test_a_key_file_that_cannot_be_used_is_an_operators_matter(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir(0o700)
    with pytest.raises(StoreError, match="cannot be used"):
        load_or_create_key(tmp_path / "key")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        load_or_create_key(tmp_path / "file" / "key")
    (tmp_path / "binary").touch(0o600)
    (tmp_path / "binary").write_bytes(b"\xff" * 32)
    with pytest.raises(StoreError, match="cannot be used"):
        load_or_create_key(tmp_path / "binary")


class Parrot:
    """A scheme for tests: the signature of a message is the message."""

    public = b"parrot"

    def signer(self, seed: bytes) -> Parrot:
        return self

    def sign(self, message: bytes) -> bytes:
        return message

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        return public == self.public and signature == message


def test_another_scheme_stands_behind_all_keys_until_its_block_ends() -> None:
    signature = KEY.sign("d", b"m")
    with substitute(Parrot()):
        key = SigningKey(bytes(32))
        assert (key.public, key.sign("d", b"m"), key.seed()) == (b"parrot", b"d\0m", bytes(32))
        verify(key.public, b"d\0m", "d", b"m")
        with pytest.raises(IntegrityError):
            verify(KEY.public, signature, "d", b"m")
        with substitute(Ed25519()):
            verify(KEY.public, signature, "d", b"m")
        verify(key.public, b"d\0m", "d", b"m")
    verify(KEY.public, signature, "d", b"m")
    with pytest.raises(IntegrityError):
        verify(key.public, b"d\0m", "d", b"m")


def test_a_failure_inside_does_not_leave_another_scheme_behind() -> None:
    with pytest.raises(ZeroDivisionError), substitute(Parrot()):
        raise ZeroDivisionError
    assert SigningKey(bytes(range(32))).public == KEY.public


def test_keys_remember_their_seeds_and_bad_seeds_are_refused() -> None:
    assert SigningKey(bytes(range(32))).seed() == bytes(range(32))
    with pytest.raises(ValueError, match="32"):
        SigningKey(bytes(31))
