"""What people see of the DHT, whatever it looks like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console, RenderableType

from dhtdata.cli.dht_view import MAX_FOUND_ROWS, MAX_HOP_ROWS, MAX_REASONS, outcome, standing, summary, way
from dhtdata.durations import apart, spoken, trip
from tests.cli.dht_samples import dht_status, found, step, trace

DAY_S = 86_400.0


def shown(pieces: Sequence[RenderableType], width: int = 80) -> str:
    console = Console(width=width, highlight=False, no_color=True)
    with console.capture() as captured:
        for piece in pieces:
            console.print(piece)
    return captured.get()


def words(text: str) -> str:
    """On one line, however it was broken."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "12 contacts of about 34 nodes; reached by strangers"),
        ({"families_reached": ()}, "not reached by strangers: open port 8470 for UDP and TCP"),
        ({"families_reached": (), "contacts": 0}, "no contacts yet; nobody is known who could reach it"),
        ({"families_reached": (), "client": True}, "a client, which nobody asks"),
        ({"clock_wrong": True, "clock_ahead_s": DAY_S}, "clock 24 h ahead of the others': set it"),
        ({"shards_behind_s": 3 * 3600.0}, "announcing is 3 h behind"),
    ],
)
def test_one_line_says_how_a_peer_stands_and_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    assert said in summary(dht_status(**changes))


def test_nothing_is_wrong_in_the_line_of_a_healthy_peer() -> None:
    assert "clock" not in summary(dht_status()) and "behind" not in summary(dht_status())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "by strangers, over IPv4 and IPv6"),
        ({"families_reached": (4,)}, "by strangers, over IPv4; over IPv6 no stranger has come"),
        ({"families_reached": ()}, "open port 8470 for UDP and TCP, and forward it in the router"),
        ({"families_reached": ()}, "900 keys to announce, once strangers reach us"),
        ({"families_reached": (), "contacts": 0}, "it has met no other node"),
        ({"client": True, "families_reached": ()}, "no, by choice"),
        (
            {"clock_wrong": True, "clock_ahead_s": DAY_S},
            "our clock is 24 h ahead of 12 other nodes: set it, claims are refused until then",
        ),
        ({"clock_wrong": True, "clock_ahead_s": -900.0}, "our clock is 15 min behind 12 other nodes"),
        ({"clock_witnesses": 1}, "not compared: 1 other node known, 3 are needed"),
        ({}, "within 1 s of 12 other nodes"),
        ({"shards_behind_s": 7_200.0}, "900 keys to announce, 2 h behind"),
        ({}, "900 keys kept announced, on time"),
        ({"strangers": 7, "over_rate": 3_000}, "datagrams dropped: 7 of another network, 3,000 over the rate"),
        ({}, "431 calls, 3 (1%) unanswered, a round trip takes 82 ms"),
        ({"network": "0123456789abcdef"}, "private, fingerprint 0123456789abcdef"),
        ({"bootstrap_failures": ("192.0.2.1:9 did not answer",)}, "bootstrap 192.0.2.1:9 did not answer"),
    ],
)
def test_the_status_says_in_words_what_is_wrong_and_what_to_do(changes: dict[str, Any], said: str) -> None:
    assert said in words(shown(standing(dht_status(**changes))))


def test_the_status_is_bounded() -> None:
    failures = tuple(f"192.0.2.{number}:9 did not answer" for number in range(60))
    text = shown(standing(dht_status(bootstrap_failures=failures, contacts_by_bits=(5_000, 2, 1))))
    assert text.count("did not answer") == MAX_REASONS and "and 54 more" in text
    assert max(map(len, text.splitlines())) <= 80


def test_contacts_are_drawn_by_distance_with_gaps_shown() -> None:
    lines = shown(standing(dht_status(contacts_by_bits=(6, 0, 2)))).splitlines()
    drawn = [line.split() for line in lines[lines.index(next(line for line in lines if "shared bits" in line)) + 1 :]]
    assert drawn == [["0", "██████", "6"], ["1", "·"], ["2", "██", "2"]]


@pytest.mark.parametrize("width", [80, 100])
def test_a_look_up_is_shown_hop_by_hop_the_nearest_last(width: int) -> None:
    steps = (
        step(1, 9, records=3),
        step(0, 0),
        step(1, 4, outcome="did not answer"),
        step(0, 2, outcome="answered nonsense"),
        step(2, 150, records=1),
    )
    text = shown(way(trace(steps, (found(7, int(time.time()) + 7_100),)), "providers of contents ab", width), width)
    lines = text.splitlines()
    rows = [line for line in lines if "no answer" in line or ":5000" in line and "ms" in line]
    assert [row.partition("203.0.113.")[2].partition(":")[0] for row in rows] == ["0", "2", "4", "9", "150"]
    assert [row.split()[:2] for row in rows if not row.startswith("    ")] == [["0", "1"], ["1", "1"], ["2", "1"]]
    assert text.count("no answer") == 2 and "answered nonsense" in text
    assert "providers of contents ab" in text and "cd" * 20 in text
    assert "provider, has all" in text and "203.0.113.7:8470" in text and "2 h" in text
    assert "3 of 5 nodes asked answered" in words(text)
    assert max(map(len, lines)) <= width


def test_a_long_look_up_shows_who_sent_records_and_the_nearest_and_counts_the_rest() -> None:
    steps = tuple(step(0, bits, outcome="answered" if bits % 2 else "did not answer") for bits in range(40))
    steps += (step(0, 1, records=5, node="ff" * 20),)
    records = tuple(found(number, int(time.time()) + 3_600) for number in range(40))
    text = shown(way(trace(steps, records), "", 80))
    rows = [line for line in text.splitlines() if ":50000" in line]
    assert len(rows) == MAX_HOP_ROWS and "ffffffff" in text and "39" in rows[-1]
    assert "… 31 more" in text and "16 silent" in text and max(map(len, text.splitlines())) <= 80
    assert text.count("provider, has all") == MAX_FOUND_ROWS and "and 24 more records" in text


def test_a_name_says_which_manifest_it_means_and_whether_it_is_stale() -> None:
    says = f"dhtdata://{'a' * 52}/poems@3 is manifest {'12' * 32}"
    now = int(time.time())
    names = tuple(
        found(number, now + left, kind="name", sequence=3, says=says, addresses=())
        for number, left in ((1, 10 * 86_400 + 60), (2, -3_660))
    )
    text = shown(way(trace((step(0, 1),), names), "", 100), 100)
    assert "name, of manifest 121212121212" in text and "fresh, 10 days" in text and "stale, 61 min" in text
    assert "poems@3" in text and "signer is at" not in text
    assert "poems@3" not in shown(way(trace((step(0, 1),), names), "name poems, key 1 of 3", 100), 100)


def test_records_of_every_kind_have_words() -> None:
    now = int(time.time())
    records = (
        found(1, now + 60, kind="shards", says="42"),
        found(2, now + 60, kind="peer", says="203.0.113.2:8470"),
        found(3, now - 60, says="part"),
    )
    text = shown(way(trace((step(0, 1),), records), "", 100), 100)
    for said in ("shards, 42 keys", "peer", "provider, has part", "expired"):
        assert said in text


def test_the_end_of_a_look_up_is_one_sentence() -> None:
    assert outcome(trace()) == (
        "Nothing found: nobody was asked in 96 ms. This peer knows no other node: name one with --bootstrap."
    )
    steps = (step(0, 1), step(0, 2, outcome="did not answer"))
    assert outcome(trace(steps)) == "Nothing found: 1 of 2 nodes asked answered in 96 ms."
    assert outcome(trace(steps, (found(1, 0),))).startswith("Found 1 record: the first after 31 ms, all after 96 ms;")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (7_200, "2 h"), (86_400, "24 h"), (9e5, "10 days")]
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_trips_and_clocks_have_words() -> None:
    assert [trip(seconds) for seconds in (0.0004, 0.0874, 2.34)] == ["0.4 ms", "87 ms", "2.3 s"]
    assert (apart(86_400), apart(-900)) == ("24 h ahead of", "15 min behind")
