"""What people see of a transfer, whatever the peer tells and however large the terminal is."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from dhtdata.cli.transfer_view import (
    FULL,
    MAX_DATASETS,
    MAX_PROVIDERS,
    WIDEST,
    FetchView,
    SeedView,
    against_bound,
    printable,
    strip,
    without_address,
)
from dhtdata.control.protocol import HeldDataset, Progress, Traffic, Upload
from dhtdata.digest import Digest
from tests.cli.dht_samples import peer_status

MIB = 1 << 20
HOSTILE = "\x1b[2J[red]\N{RIGHT-TO-LEFT OVERRIDE}evil[/red]\r\n\a" * 20


def shown(view: RenderableType, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    """The lines of a view on a terminal without colours."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(
        file=screen,
        width=width,
        height=height,
        highlight=False,
        no_color=True,
        force_terminal=True,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(view)
    text = captured.get()
    # Bold and dim are no colours.
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m"):
        text = text.replace(code, "")
    return [line.rstrip() for line in text.splitlines()]


def traffic(number: int, **changes: Any) -> Traffic:
    values: dict[str, Any] = {
        "address": f"203.0.113.{number}:8470",
        "bytes": 100 * MIB,
        "blocks": 100,
        "rate_bytes_s": 3.0 * MIB,
        "latency_s": 0.042,
        "outstanding": 4 * MIB,
        "share": 1.0,
    }
    return Traffic(**(values | changes))


def progress(**changes: Any) -> Progress:
    """A fetch half-way."""
    values: dict[str, Any] = {
        "shards": 8,
        "shards_total": 16,
        "bytes": 256 * MIB,
        "bytes_total": 512 * MIB,
        "providers": 2,
        "have": bytes([FULL] * 30 + [200, 100, 50] + [0] * 31),
        "blocks": 240,
        "blocks_total": 496,
        "fetched": 240 * MIB,
        "wasted": 3 * MIB,
        "rate_bytes_s": 6.0 * MIB,
        "elapsed_s": 52.0,
        "bound_s": 40.0,
        "traffic": (traffic(7), traffic(9, share=0.371, wasted=MIB, latency_s=0.0)),
    }
    return Progress(**(values | changes))


def fetching(**changes: Any) -> FetchView:
    view = FetchView("fetching poems@1")
    for _ in range(100):
        view.see(progress(**changes))
    return view


def dataset(number: int = 1, **changes: Any) -> HeldDataset:
    values: dict[str, Any] = {
        "manifest": Digest(bytes([number]) * 32),
        "contents": Digest(bytes([number]) * 32),
        "name_uri": f"dhtdata://{'a' * 52}/poems{number}@3",
        "shards": 16,
        "shards_held": 8,
        "bytes": 512 * MIB,
        "bytes_held": 256 * MIB,
        "state": "fetching",
        "have": bytes([FULL] * 32 + [0] * 32),
    }
    return HeldDataset(**(values | changes))


def seeding(dataset_count: int = 1, uploads: int = 1, **changes: Any) -> SeedView:
    status = peer_status()
    values = {name: getattr(status, name) for name in status.__struct_fields__} | {
        "datasets": tuple(dataset(number) for number in range(dataset_count)),
        "fetchers": tuple(
            Upload(address=f"203.0.113.{number}", bytes=9 * MIB, rate_bytes_s=2.0 * MIB) for number in range(uploads)
        ),
        "traffic": (traffic(7, share=None), traffic(8, rate_bytes_s=0.0, outstanding=0, wasted=MIB)),
        "bytes_served": 900 * MIB,
        "requests_served": 4_211,
        "up_bytes_s": 2.0 * MIB * uploads,
        "down_bytes_s": 3.0 * MIB,
    }
    return SeedView(type(status)(**(values | changes)))


def test_a_fetch_shows_its_speed_its_have_map_its_blocks_its_waste_and_its_bound() -> None:
    text = "\n".join(lines := shown(fetching()))
    assert lines[0].startswith("fetching poems@1") and lines[0].endswith("52 s")
    assert "50.0% of 512 MiB" in lines[1] and "8 of 16 shards" in lines[2]
    for said in ("6.0 MiB/s", "43 s left", "256 MiB here", "240 MiB fetched"):
        assert said in lines[3]
    assert "240 of about 496 blocks verified" in text and "3.0 MiB wasted" in text
    assert "1.30 × lower bound" in text and "reused" not in text
    rows = [line.split() for line in lines if "203.0.113" in line]
    assert rows == [
        ["203.0.113.7:8470", "100%", "3.0", "MiB/s", "42", "ms", "4.0", "MiB", "asked"],
        ["203.0.113.9:8470", "37.1%", "3.0", "MiB/s", "1.0", "MiB", "4.0", "MiB", "asked"],
    ]


def test_what_providers_did_before_a_fetch_began_does_not_count() -> None:
    view = FetchView("fetching poems@1")
    old = traffic(7, bytes=50 * MIB, blocks=50, wasted=7 * MIB)
    view.see(progress(elapsed_s=0.1, fetched=0, blocks=0, wasted=0, traffic=(old,)))
    assert "7.0 MiB" not in "\n".join(shown(view)), "the peer has thrown it away for somebody else"
    now = traffic(7, bytes=53 * MIB, blocks=52, wasted=9 * MIB)
    late = traffic(8, bytes=1 * MIB, blocks=1, wasted=30 * MIB)
    view.see(progress(elapsed_s=9.0, fetched=4 * MIB, blocks=3, wasted=2 * MIB, traffic=(now, late)))
    told = [(entry.bytes, entry.blocks, entry.wasted) for entry in view.seen.traffic]
    assert told == [(3 * MIB, 2, 2 * MIB), (1 * MIB, 1, 2 * MIB)]
    assert "2.0 MiB wasted" in "\n".join(shown(view))


def test_the_time_left_does_not_wander_when_bytes_come_in_gusts() -> None:
    view, told = FetchView("fetching poems@1"), []
    for quarter in range(1, 240):
        elapsed_s = quarter / 4
        # 64 KB/s in pieces of 256 KiB: a second of bytes, three of nothing.
        rate_bytes_s = 262_144.0 if quarter > 20 and quarter % 16 < 4 else 0.0
        view.see(progress(bytes=0, bytes_total=64 * MIB, elapsed_s=elapsed_s, rate_bytes_s=rate_bytes_s))
        if found := re.search(r"(\d+) min left", "\n".join(shown(view))):
            told.append(int(found[1]))
    assert len(told) > 160 and 10 <= min(told) <= max(told) <= 25, "64 MiB take 17 minutes"
    assert 14 <= min(told[80:]) <= max(told[80:]) <= 20


def test_a_fetch_that_just_began_says_what_it_does() -> None:
    lines = shown(FetchView("fetching poems@1"))
    assert len(lines) == 2 and "looking for providers" in lines[1]
    early = "\n".join(shown(fetching(bound_s=None, blocks=0, blocks_total=0, fetched=0, rate_bytes_s=0.0, traffic=())))
    assert "lower bound" not in early and "0 blocks verified" in early and " left" not in early


def test_one_of_anything_is_singular() -> None:
    text = "\n".join(shown(fetching(blocks=1, blocks_total=1)))
    assert "1 of about 1 block verified" in text
    assert "0 blocks verified" in "\n".join(shown(fetching(blocks=0, blocks_total=0)))


def test_what_was_reused_is_told_and_a_whole_dataset_has_no_estimate() -> None:
    text = "\n".join(shown(fetching(reused=5 * MIB, bytes=512 * MIB, blocks_total=240)))
    assert "5.0 MiB reused" in text and "240 of 240 blocks verified" in text and "100% of 512 MiB" in text


def test_avoided_and_idle_providers_say_so() -> None:
    told = (traffic(1, avoided="sent wrong bytes"), traffic(2, outstanding=0, share=None))
    lines = shown(fetching(traffic=told), width=100)
    assert any("avoided: sent wrong bytes" in line for line in lines)
    assert any("203.0.113.2" in line and line.endswith("idle") and " ? " in line for line in lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_reason_for_avoiding_a_provider_is_shown_whole(width: int) -> None:
    reason = "203.0.113.1 port 8470: no connection (Connection refused)"
    told = (traffic(1, avoided=reason, outstanding=0), traffic(2))
    lines = shown(fetching(traffic=told), width)
    states = [line[line.index("avoided") :] for line in lines if "avoided" in line]
    start = next(line.index("avoided") for line in lines if "avoided" in line)
    states += [line.strip() for line in lines if len(line) > start and not line[:start].strip()]
    assert " ".join(states) == "avoided: no connection (Connection refused)"
    assert len(states) == (1 if width == 120 else len(states)) <= 3


def test_a_long_reason_takes_three_lines_where_there_is_room_for_them_and_one_elsewhere() -> None:
    told = tuple(traffic(number, avoided="word " * 60) for number in range(3))
    lines = shown(fetching(traffic=told, providers=3), height=30)
    assert sum("word" in line for line in lines) == 9 and sum("…" in line for line in lines) == 3
    low = shown(fetching(traffic=told, providers=3), height=13)
    assert len(low) == 11 and sum("203.0.113" in line for line in low) == 3


@pytest.mark.parametrize(
    ("address", "reason", "said"),
    [
        ("192.0.2.2:9001", "192.0.2.2:9001: no connection (x)", "no connection (x)"),
        ("192.0.2.2:9001", "192.0.2.2 port 9001: no connection (x)", "no connection (x)"),
        ("192.0.2.2:9001", "http://192.0.2.2:9001/v1/have/ab: status 404", "status 404"),
        ("192.0.2.2:9001", "192.0.2.2:9001 sent wrong bytes for block 3", "sent wrong bytes for block 3"),
        ("192.0.2.2:9001", "192.0.2.22:9001: no answer", "192.0.2.22:9001: no answer"),
        ("192.0.2.2:9001", "192.0.2.2:90011: no answer", "192.0.2.2:90011: no answer"),
        ("[2001:db8::1]:80", "2001:db8::1 port 80: no connection (x)", "no connection (x)"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80: given up", "given up"),
        ("https://a.example.org/x", "https://a.example.org/x/v1/blobs/ab: status 200", "status 200"),
        ("https://a.example.org/x", "a.example.org: the name cannot be looked up", "the name cannot be looked up"),
        (
            "192.0.2.2:9001",
            f"wrong bytes from 192.0.2.2:9001 for block 3 of shard {'ab' * 32}",
            "wrong bytes for block 3 of shard abababababab…",
        ),
        ("192.0.2.2:9001", "busy", "busy"),
        ("192.0.2.2:9001", "192.0.2.2:9001", "192.0.2.2:9001"),
    ],
)
def test_a_reason_does_not_repeat_the_address_next_to_it(address: str, reason: str, said: str) -> None:
    assert without_address(reason, address) == said


def test_many_providers_are_summed_up_in_the_last_line() -> None:
    told = tuple(traffic(number) for number in range(64))
    lines = shown(fetching(traffic=told, providers=200, rate_bytes_s=400.0 * MIB), height=50)
    assert sum("203.0.113" in line for line in lines) == MAX_PROVIDERS - 1
    assert lines[-1].split() == ["193", "more", "379", "MiB/s"]


def test_a_seed_shows_its_datasets_who_fetches_and_from_whom_it_fetches() -> None:
    lines = shown(seeding(uploads=2), height=40)
    text = "\n".join(lines)
    assert lines[0].startswith("seeding 1 dataset") and "up 1 s" in lines[0]
    assert (
        lines[1].split() == ["poems0@3", "█" * 11 + "·" * 11, "50.0%", "512", "MiB", "fetching"] or "50.0%" in lines[1]
    )
    assert "serving 4.0 MiB/s · 900 MiB in 4,211 requests · 12 DHT contacts" in text
    assert "fetching 3.0 MiB/s" in text and "1.0 MiB wasted" in text
    assert sum(line.startswith("203.0.113.") and ":8470" not in line for line in lines) == 2
    [row] = [line.split() for line in lines if ":8470" in line]
    assert row[:3] == ["203.0.113.7:8470", "3.0", "MiB/s"], "of no dataset, and only who does something now"


def test_a_seed_with_much_to_show_counts_the_rest() -> None:
    text = "\n".join(shown(seeding(40, uploads=60), height=60))
    assert f"and {40 - MAX_DATASETS + 1} more: dhtdata status lists all" in text
    assert "53 more" in text and "106 MiB/s" in text


def test_a_seed_that_is_not_there_yet_says_why() -> None:
    assert shown(SeedView(said="no peer runs for this store")) == ["no peer runs for this store"]


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(20, 160),
    height=st.integers(2, 50),
    providers=st.integers(0, 64),
    datasets=st.integers(0, 40),
    hostile=st.booleans(),
    encoding=st.sampled_from(["utf-8", "ascii"]),
)
def test_a_view_never_leaves_its_place(
    width: int, height: int, providers: int, datasets: int, hostile: bool, encoding: str
) -> None:
    told = tuple(
        traffic(number, avoided=HOSTILE, address=HOSTILE) if hostile else traffic(number) for number in range(providers)
    )
    held = tuple(
        dataset(number, state=f"waiting: {HOSTILE}", name_uri=HOSTILE) if hostile else dataset(number)
        for number in range(datasets)
    )
    fetch = fetching(traffic=told, providers=providers)
    fetch.title = HOSTILE if hostile else fetch.title
    for view in (fetch, FetchView(fetch.title), seeding(0, providers, datasets=held, traffic=told), SeedView()):
        lines = shown(view, width, height, encoding)
        assert 1 <= len(lines) <= max(height - 2, 1)
        assert all(cell_len(line) <= width for line in lines)
        assert all(cell_len(line) <= WIDEST for line in lines[:5])
        assert all(line.isprintable() for line in lines)
        assert encoding == "utf-8" or all(
            line.replace("…", "").replace("\N{REPLACEMENT CHARACTER}", "").isascii() for line in lines
        )


@given(cells=st.binary(max_size=80), width=st.integers(1, 120), ascii_only=st.booleans())
def test_a_strip_shows_all_as_full_nothing_as_empty_and_everything_else_as_shades(
    cells: bytes, width: int, ascii_only: bool
) -> None:
    empty, *shades, full = list("-.:+#" if ascii_only else "·░▒▓█")
    drawn = strip(cells, width, ascii_only=ascii_only)
    assert len(drawn) == width and set(drawn) <= {empty, *shades, full}
    assert (set(drawn) == {full}) == (bool(cells) and set(cells) == {FULL})
    assert (set(drawn) == {empty}) == (not any(cells))


@pytest.mark.parametrize(
    ("share", "sign"), [(0, "·"), (1, "░"), (85, "▒"), (84, "░"), (170, "▓"), (254, "▓"), (255, "█")]
)
def test_shades_are_thirds(share: int, sign: str) -> None:
    assert strip(bytes([share]), 3) == sign * 3


def test_achieved_over_bound_is_one_if_perfect() -> None:
    assert against_bound(progress(elapsed_s=40.0, bound_s=40.0)) == 1.0


def test_nothing_that_moves_a_cursor_is_printed() -> None:
    assert printable("a\x1b[2Jb\u202e\r") == "a\N{REPLACEMENT CHARACTER}[2Jb" + "\N{REPLACEMENT CHARACTER}" * 2
