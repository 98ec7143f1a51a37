from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.ticket import MAX_TICKET_CHARACTERS, Ticket
from dhtdata.formats.web_seeds import (
    EXT_KEY,
    MAX_URL_CHARACTERS,
    MAX_WEB_SEEDS,
    WebSeed,
    first_hop,
    from_ext,
    next_hop,
    to_ext,
)
from tests.formats.samples import named

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=2, max_size=4).map(".".join) | st.just("8.8.8.8") | st.just("[2606:4700::1]")
ports = st.sampled_from(["", ":80", ":443", ":8470", ":65535"])
paths = st.lists(st.from_regex(r"([A-Za-z0-9_~-]|%[2-7][1-9]){1,8}", fullmatch=True), max_size=3).map(
    lambda parts: "".join(f"/{part}" for part in parts)
)
urls = st.builds("{}://{}{}{}".format, st.sampled_from(["http", "https", "HTTPS"]), hosts, ports, paths)
seeds = st.builds(WebSeed.parse, urls)

CANONICAL = [
    # (as written, canonical)
    ("https://data.example.org", "https://data.example.org"),
    ("https://data.example.org/", "https://data.example.org"),
    ("HTTPS://Data.Example.ORG:443/Mirror/", "https://data.example.org/Mirror"),
    ("http://data.example.org:80/a/b", "http://data.example.org/a/b"),
    ("http://data.example.org:443", "http://data.example.org:443"),
    ("https://data.example.org/a%2fb%7E", "https://data.example.org/a%2Fb%7E"),
    ("https://bücher.example.org/x", "https://xn--bcher-kva.example.org/x"),
    ("http://8.8.8.8:8470", "http://8.8.8.8:8470"),
    ("http://[2606:4700:0:0::1]:08080/m", "http://[2606:4700::1]:8080/m"),
    ("https://my_bucket.s3.example.org/p", "https://my_bucket.s3.example.org/p"),
]
NAMED = [
    ("http://127.0.0.1:8470/", "http://127.0.0.1:8470"),
    ("http://nas/mirror", "http://nas/mirror"),
    ("http://[::1]:21", "http://[::1]:21"),
    ("file:///mnt/mirror/", "file:///mnt/mirror"),
    ("file://localhost/mnt/mirror", "file:///mnt/mirror"),
    ("FILE:///mnt/a mirror/ü", "file:///mnt/a%20mirror/%C3%BC"),
    ("file:///mnt/100%25", "file:///mnt/100%25"),
]
MALFORMED = [
    # (text, what the message says)
    ("", "is no web seed: expected https://"),
    ("data.example.org/mirror", "is no web seed: expected https://"),
    ("ftp://data.example.org", "is no web seed: expected https://"),
    ("s3://bucket/prefix", "is no web seed: expected https://"),
    ("javascript://x", "is no web seed: expected https://"),
    ("https:/data.example.org", "is no web seed: expected https://"),
    ("https://user@data.example.org", "user names and passwords"),
    ("https://user:secret@data.example.org/x", "user names and passwords"),
    ("https://data.example.org/x?token=1", r"begins with \? or #"),
    ("https://data.example.org/x#y", r"begins with \? or #"),
    ("https://data.example.org/x y", "white space"),
    ("https://data.example.org/x\n", "white space"),
    ("https://data.example.org/x\0", "white space"),
    ("https://data.example.org\\@evil.example.org", "white space, a backslash"),
    ("https://data.example.org/\u202ex", "white space, a backslash or control"),
    ("https://", "is not a host name"),
    ("https:///x", "is not a host name"),
    ("https://.example.org", "is not a host name"),
    ("https://example..org", "is not a host name"),
    ("https://example.org.", "is not a host name"),
    ("https://-x.example.org", "is not a host name"),
    (f"https://{'a' * 64}.example.org", "is not a host name"),
    (f"https://{'.'.join(['a' * 60] * 5)}.org", "is not a host name"),
    ("https://ex%61mple.org", "is not a host name"),
    ("https://data.example.org:", "host or port is malformed"),
    ("https://data.example.org:x", "host or port is malformed"),
    ("https://data.example.org:٣", "host or port is malformed"),
    ("https://data.example.org:0", "ports are 1 to 65535"),
    ("https://data.example.org:65536", "ports are 1 to 65535"),
    ("https://data.example.org:123456", "host or port is malformed"),
    ("https://[::1", "host or port is malformed"),
    ("https://::1/", "host or port is malformed"),
    ("https://[x]/", "is not an IPv6 address"),
    ("https://[fe80::1%lo]/", "is not an IPv6 address"),
    ("https://2130706433", "write IP addresses like"),
    ("https://0x7f000001", "write IP addresses like"),
    ("https://0177.0.0.1", "write IP addresses like"),
    ("https://127.1", "write IP addresses like"),
    ("https://1.2.3.4.5", "write IP addresses like"),
    ("https://256.1.1.1", "write IP addresses like"),
    ("https://data.example.org/ü", "write characters such as 'ü' as %XX"),
    ("https://data.example.org/%", "write characters such as '%' as %XX"),
    ("https://data.example.org/%0", "write characters such as '%' as %XX"),
    ("https://data.example.org/<x>", "write characters such as '<' as %XX"),
    ("https://data.example.org/a/../b", "empty, dotted or unprintable"),
    ("https://data.example.org/a/./b", "empty, dotted or unprintable"),
    ("https://data.example.org/%2e%2E/b", "empty, dotted or unprintable"),
    ("https://data.example.org/a//b", "empty, dotted or unprintable"),
    ("https://data.example.org//", "empty, dotted or unprintable"),
    ("https://data.example.org/a%00b", "empty, dotted or unprintable"),
    ("https://data.example.org/a%0d%0aHost:x", "empty, dotted or unprintable"),
    ("https://data.example.org/" + "a" * MAX_URL_CHARACTERS, "at most 512 are allowed"),
    ("file://host/mirror", "write it as file:///absolute/folder"),
    ("file://mirror", "write it as file:///absolute/folder"),
    ("file:///", "is no folder of a mirror"),
    ("file:///mnt/../etc", "is no folder of a mirror"),
    ("file:///mnt/%2e%2e/etc", "is no folder of a mirror"),
    ("file:///mnt/a%00", "is no folder of a mirror"),
    ("file:///mnt/a\nb", "is no folder of a mirror"),
]
STRANGERS_MAY_NOT = [
    ("file:///mnt/mirror", "only its own machine can read"),
    ("http://127.0.0.1:8470", "not an address that everybody reaches"),
    ("http://192.168.1.7", "not an address that everybody reaches"),
    ("https://[::ffff:10.0.0.1]", "not an address that everybody reaches"),
    ("https://[64:ff9b::7f00:1]", "not an address that everybody reaches"),
    ("http://localhost:8080", "write the whole host name"),
    ("http://nas/mirror", "write the whole host name"),
    ("http://data.example.org:22", "only ports 80, 443 and from 1024 on"),
    ("https://data.example.org:1023/x", "only ports 80, 443 and from 1024 on"),
]


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_a_url_has_one_canonical_form(text: str, canonical: str) -> None:
    seed = WebSeed.parse(text)
    assert (seed.url, str(seed), seed.folder) == (canonical, canonical, None)
    assert WebSeed.parse(canonical) == seed == WebSeed(canonical)


@pytest.mark.parametrize(("text", "canonical"), [*CANONICAL, *NAMED])
def test_a_user_may_name_any_place(text: str, canonical: str) -> None:
    assert WebSeed.parse(text, named=True).url == canonical
    assert WebSeed.parse(canonical, named=True).url == canonical


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("text", "complaint"), MALFORMED)
def test_a_malformed_url_is_refused_with_the_reason(text: str, complaint: str, named: bool) -> None:
    with pytest.raises(FormatError, match=complaint):
        WebSeed.parse(text, named=named)


@pytest.mark.parametrize(("text", "complaint"), STRANGERS_MAY_NOT)
def test_a_stranger_may_not_name_what_only_the_user_reaches(text: str, complaint: str) -> None:
    assert WebSeed.parse(text, named=True).named
    with pytest.raises(FormatError, match=complaint):
        WebSeed.parse(text)
    with pytest.raises(FormatError, match=complaint):
        to_ext([WebSeed.parse(text, named=True)])


@pytest.mark.parametrize("text", ["https://data.example.org/", "https://data.example.org:443", "HTTPS://x.org"])
def test_a_web_seed_is_made_of_canonical_text_only(text: str) -> None:
    with pytest.raises(FormatError, match="not in canonical form"):
        WebSeed(text)


def test_a_secret_in_a_refused_url_is_not_repeated() -> None:
    with pytest.raises(FormatError) as failure:
        WebSeed.parse("https://me:hunter2@data.example.org")
    assert "hunter2" not in str(failure.value)


def test_a_folder_is_the_path_that_was_meant() -> None:
    assert WebSeed.parse("file:///mnt/a%20b/ü%25", named=True).folder == Path("/mnt/a b/ü%")


def test_who_named_it_makes_no_other_web_seed() -> None:
    mine, theirs = WebSeed.parse("https://x.example.org", named=True), WebSeed.parse("https://x.example.org")
    assert mine == theirs and hash(mine) == hash(theirs) and mine.named and not theirs.named
    assert len({mine, theirs, Address("192.0.2.1", 1)}) == 2


@given(text=st.text() | st.builds("{}://{}".format, st.sampled_from(["http", "https", "file"]), st.text()))
def test_any_text_is_a_canonical_web_seed_or_refused(text: str) -> None:
    for by_user in (False, True):
        try:
            seed = WebSeed.parse(text, named=by_user)
        except FormatError:
            continue
        assert WebSeed.parse(seed.url, named=by_user) == seed
        assert seed.url.isascii() and seed.url.isprintable() and " " not in seed.url and seed.url[-1] != "/"


@given(some=st.lists(seeds, max_size=MAX_WEB_SEEDS))
def test_web_seeds_are_read_back_from_an_ext_map(some: list[WebSeed]) -> None:
    assert from_ext(to_ext(some)) == tuple(dict.fromkeys(some))


def test_an_ext_map_without_web_seeds_has_no_entry() -> None:
    assert to_ext([]) == {} and from_ext({}) == () and from_ext({"colour": "blue"}) == ()


def test_too_many_web_seeds_are_refused_by_the_writer_and_cut_by_the_reader() -> None:
    many = [WebSeed.parse(f"https://x{i}.example.org") for i in range(MAX_WEB_SEEDS + 1)]
    with pytest.raises(FormatError, match="9 web seeds are named, at most 8"):
        to_ext(many)
    assert from_ext({EXT_KEY: " ".join(seed.url for seed in many)}) == tuple(many[:-1])


def test_a_reader_leaves_out_what_it_does_not_understand() -> None:
    good = "https://x.example.org"
    text = f"  ipfs://later http://127.0.0.1 {good} file:///etc {good}/ \n"
    assert from_ext({EXT_KEY: text}) == (WebSeed(good),)


@given(text=st.text())
def test_any_text_in_an_ext_map_is_read_without_an_error(text: str) -> None:
    assert all(not seed.named and seed.folder is None for seed in from_ext({EXT_KEY: text}))


MANIFEST = Manifest(version=1, name="wiki", contents=named("contents"), statistics=named("statistics"))
SEED = WebSeed.parse("https://data.example.org/wiki")


def test_a_manifest_carries_web_seeds_where_older_readers_do_not_look() -> None:
    data = replace(MANIFEST, ext=to_ext([SEED])).encode()
    assert b'"ext":{"web_seeds":"https://data.example.org/wiki"}' in data
    assert Manifest.decode(data).web_seeds == (SEED,)
    assert MANIFEST.web_seeds == ()


@given(some=st.lists(seeds, max_size=3, unique=True).map(tuple), target=st.just(Name(bytes(32), "wiki")))
def test_a_ticket_carries_web_seeds(some: tuple[WebSeed, ...], target: Name) -> None:
    ticket = Ticket(target, (Address("192.0.2.1", 1),), bytes(32), some)
    assert Ticket.parse(str(ticket)) == ticket


def test_a_ticket_with_a_web_seed_has_the_text_that_it_always_had() -> None:
    text = str(Ticket(named("manifest"), (), None, (SEED,)))
    assert text == (Path(__file__).parent.parent / "golden" / "ticket_with_web_seed.txt").read_text().strip()
    assert Ticket.parse(text).web_seeds == (SEED,)


def test_a_ticket_that_would_be_too_long_says_what_to_leave_out() -> None:
    long = tuple(WebSeed.parse(f"https://x{i}.example.org/{'a' * 300}") for i in range(3))
    with pytest.raises(FormatError, match=f"at most {MAX_TICKET_CHARACTERS} characters.*: name fewer web seeds"):
        str(Ticket(named("manifest"), (), None, long))


def test_a_request_asks_below_the_base() -> None:
    hop = first_hop(SEED, "/v1/blobs/x")
    assert (hop.scheme, hop.host, hop.port, hop.target, hop.trusted) == (
        "https",
        "data.example.org",
        443,
        "/wiki/v1/blobs/x",
        False,
    )
    assert hop.url == "https://data.example.org/wiki/v1/blobs/x"
    assert first_hop(WebSeed.parse("http://[::1]:81", named=True), "/v1/x").url == "http://[::1]:81/v1/x"


HOME = WebSeed.parse("http://nas:8080/mirror", named=True)
SECURE = WebSeed.parse("https://data.example.org/wiki", named=True)
FOLLOWED = [
    # (seed, Location, where it leads, whether wherever that is)
    (HOME, "/other/v1/x", "http://nas:8080/other/v1/x", True),
    (HOME, "x?y=%2F#z", "http://nas:8080/mirror/v1/x?y=%2F", True),
    (HOME, "https://nas/mirror/v1/x", "https://nas/mirror/v1/x", True),
    (HOME, "https://cdn.example.org/x?sig=a/b", "https://cdn.example.org/x?sig=a/b", False),
    (SECURE, "//cdn.example.org", "https://cdn.example.org/", False),
    (SECURE, "https://data.example.org/elsewhere", "https://data.example.org/elsewhere", True),
]
REFUSED = [
    # (seed, Location, why)
    (SEED, "/other", "only web seeds that the user names"),
    (SEED, "https://cdn.example.org/x", "only web seeds that the user names"),
    (SECURE, "http://data.example.org/x", "redirects to http://, which is refused"),
    (SECURE, "file:///etc/passwd", "redirects to file://, which is refused"),
    (HOME, "file:///etc/passwd", "redirects to file://, which is refused"),
    (HOME, "http://nas:631/", "only ports 80, 443"),
    (HOME, "http://other/", "write the whole host name"),
    (HOME, "http://169.254.169.254/latest", "not an address that everybody reaches"),
    (HOME, "http://127.0.0.1:8080/", "not an address that everybody reaches"),
    (HOME, "https://cdn.example.org:22/", "only ports 80, 443"),
    (HOME, "https://a@cdn.example.org/", "user names and passwords"),
    (HOME, "ftp://cdn.example.org/", "expected https://"),
    (HOME, "https://cdn.example.org/?a b", "malformed address"),
    (HOME, "https://cdn.example.org/?a\r\nb", "malformed|control"),
    (HOME, "http://[", "malformed address"),
    (HOME, "x" * 5_000, "5000 characters"),
]


@pytest.mark.parametrize(("seed", "location", "url", "trusted"), FOLLOWED)
def test_a_redirect_is_followed_where_it_may_lead(seed: WebSeed, location: str, url: str, trusted: bool) -> None:
    hop = next_hop(seed, first_hop(seed, "/v1/y"), location)
    assert (hop.url, hop.trusted) == (url, trusted)


@pytest.mark.parametrize(("seed", "location", "complaint"), REFUSED)
def test_a_redirect_elsewhere_is_refused(seed: WebSeed, location: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        next_hop(seed, first_hop(seed, "/v1/y"), location)


@given(location=st.text())
def test_any_redirect_is_followed_or_refused(location: str) -> None:
    for seed in (HOME, SECURE):
        try:
            hop = next_hop(seed, first_hop(seed, "/v1/y"), location)
        except FormatError:
            continue
        assert hop.trusted == (hop.host in ("nas", "data.example.org") and hop.port in (8080, 443))
