"""The demo: three peers share a real dataset, and the publisher is killed while the third one trains on it.

``demo.py [PATH] [--json]``. Rows are source files: path, text, size, package. Every peer is a process of its own with a
home of its own in a temporary folder, real UDP and HTTP on loopback:

1. the *publisher* publishes the rows and seeds them;
2. the *follower* seeds the publisher's ticket;
3. the *trainer* knows only the dataset's name and one DHT address, mounts it, and trains a small language model. Its
   private peer, a process too, finds both providers through the DHT.

A third into the epoch the publisher is killed with SIGKILL. The epoch must still end with every row exactly once, and
the bytes that were outstanding must come from the follower. Leaves no process and no file behind, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from demo_rows import read_rows, write_parquet

NAME = "sources"
LEAST_BYTES = 4 << 20
FOLLOW_S = 120.0
END_S = 10.0


class DemoError(Exception):
    """The demo cannot go on, or did not show what it must."""


class Stage:
    """The demo's processes and its folder; leaving the ``with`` ends and removes them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        self._children: list[subprocess.Popen[str]] = []

    def start(self, who: str, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """A child in a session of its own, so that Ctrl-C reaches only us and we end it in order."""
        log = (self.folder / f"{who}.log").open("w")
        with log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=self.environment(who) | environment,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def home(self, who: str) -> Path:
        return self.folder / who

    def environment(self, who: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DHTDATA_")}
        own = {"DHTDATA_HOME": str(self.home(who)), "DHTDATA_LISTEN": "127.0.0.1", "DHTDATA_PORT": "0"}
        return kept | own | {"XDG_RUNTIME_DIR": str(self.runtime), "PYTHONUNBUFFERED": "1"}

    def line(self, who: str, child: subprocess.Popen[str]) -> dict[str, Any]:
        """The next line of JSON that a child prints. DemoError with the end of its log if there is none."""
        if child.stdout is None or not (text := child.stdout.readline()):
            raise DemoError(f"the {who} ended early: {self.log_end(who)}")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise DemoError(f"the {who} failed: {answer['error']['message']}")
        return answer

    def log_end(self, who: str) -> str:
        return (self.folder / f"{who}.log").read_text(errors="replace")[-2_000:] or "it said nothing"

    def end(self) -> None:
        """End every process, politely first, and remove the folder."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        deadline_s = time.monotonic() + END_S
        for child in self._children:
            try:
                child.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._stop_private_peer()
        shutil.rmtree(self.folder)

    def _stop_private_peer(self) -> None:
        """The trainer's peer outlives the trainer by design (other ranks may need it): tell it to stop."""
        from dhtdata.config import load_settings
        from dhtdata.control.client import PeerClient
        from dhtdata.errors import NotFoundError
        from dhtdata.store import Store

        os.environ["XDG_RUNTIME_DIR"] = str(self.runtime)
        settings = load_settings({"home": self.home("trainer")}, {})
        if not settings.store.exists():
            return
        with Store.open(settings.store) as store, contextlib.suppress(NotFoundError):
            with PeerClient.connect(store, settings, start=False, keeps_alive=False) as peer:
                pid = peer.status().pid
                peer.stop()
            _wait_gone(pid)


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    begun_s = time.monotonic()
    try:
        with _stage() as stage:
            figures = play(stage, arguments.path, quiet=arguments.json)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except DemoError as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    figures["total_s"] = round(time.monotonic() - begun_s, 1)
    if arguments.json:
        print(json.dumps(figures))
    else:
        _table(figures)
    wrong = _judge(figures)
    for complaint in wrong:
        print(f"demo: {complaint}", file=sys.stderr)
    return 1 if wrong else 0


def play(stage: Stage, path: Path, *, quiet: bool) -> dict[str, Any]:
    """The whole story; its figures."""

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    rows = read_rows(path)
    if (size := sum(row["size"] for row in rows)) < LEAST_BYTES:
        raise DemoError(
            f"{path} holds {_size(size)} of source files: to see a swarm at work takes {_size(LEAST_BYTES)}"
        )
    write_parquet(rows, stage.folder / "rows.parquet")
    say(f"1. {len(rows):,} source files of {path}, {_size(size)}")

    dhtdata = [sys.executable, "-P", "-m", "dhtdata"]
    publish = [*dhtdata, "publish", "rows.parquet", "--name", NAME, "--seed", "--json"]
    publisher = stage.start("publisher", publish)
    published = stage.line("publisher", publisher)
    origin = published["addresses"][0]
    say(f"2. The publisher (process {publisher.pid}, {origin}) published and seeds {published['name']}")
    say(f"   manifest {published['manifest']}")
    say(f"   ticket   {published['ticket']}")

    follower = stage.start("follower", [*dhtdata, "seed", published["ticket"], "--json"])
    followed = stage.line("follower", follower)
    second = followed["addresses"][0]
    _wait_whole(stage, "follower")
    say(f"3. The follower (process {follower.pid}, {second}) fetched all of it with that ticket and seeds it too")

    trainer_script = str(Path(__file__).with_name("demo_trainer.py"))
    trainer = stage.start("trainer", [sys.executable, trainer_script, published["name"]], DHTDATA_BOOTSTRAP=second)
    say(f"4. The trainer (process {trainer.pid}) knows the name and one DHT address, and mounts it:")
    return _train(stage, trainer, publisher, (origin, second), rows, say)


def _train(
    stage: Stage,
    trainer: subprocess.Popen[str],
    publisher: subprocess.Popen[str],
    providers: tuple[str, str],
    rows: list[dict[str, Any]],
    say: Any,
) -> dict[str, Any]:
    origin, second = providers
    killed: dict[str, Any] = {}
    while (seen := stage.line("trainer", trainer))["event"] != "end":
        if seen["event"] == "packages":
            say(f"   {seen['count']} packages, read from the small columns alone in {seen['seconds']:.1f} s")
            continue
        if seen["event"] == "providers":
            named = ", ".join(f"{entry['address']} ({entry['source']})" for entry in seen["providers"])
            say(f"   it knows {len(seen['providers'])} providers: {named}")
            continue
        if seen["event"] == "loss":
            say(f"   row {seen['rows']:>6,}   loss {seen['loss']:.3f} nats a byte")
            continue
        killed = seen
        publisher.send_signal(signal.SIGKILL)
        publisher.wait()
        outstanding = _size(seen["outstanding"])
        say(f"5. A third into the epoch, {outstanding} not here yet: killed the publisher (SIGKILL, {origin})")
        if trainer.stdin is not None:
            trainer.stdin.write("go\n")
            trainer.stdin.flush()
    seen["rows_expected"] = len(rows)
    expected = {row["path"]: hashlib.sha256(row["text"].encode()).hexdigest() for row in rows}
    got: dict[str, str] = {}
    for path, digest in seen.pop("seen"):
        got.setdefault(path, digest)
    missing = sum(got.get(path) != digest for path, digest in expected.items())
    after = {address: seen["providers"].get(address, 0) - killed["providers"].get(address, 0) for address in providers}
    say(f"6. The epoch ended: {seen['rows']:,} rows, {seen['rows'] - len(got)} twice, {missing} missing")
    return {
        "rows": seen["rows"],
        "rows_expected": len(rows),
        "duplicates": seen["rows"] - len(got),
        "missing": missing,
        "bytes": seen["bytes"],
        "blocks_verified": seen["blocks_verified"],
        "providers": {address: seen["providers"].get(address, 0) for address in providers} | seen["providers"],
        "publisher": origin,
        "follower": second,
        "publisher_killed": publisher.returncode == -signal.SIGKILL,
        "outstanding_at_kill": killed["outstanding"],
        "bytes_after_kill": after,
        "first_batch_s": seen["first_batch_s"],
        "rows_s": seen["rows_s"],
        "loss_first": seen["loss_first"],
        "loss_last": seen["loss_last"],
    }


def _judge(figures: dict[str, Any]) -> list[str]:
    """What the demo promised and did not show."""
    checks = {
        "rows are missing or came twice": figures["missing"] == figures["duplicates"] == 0
        and figures["rows"] == figures["rows_expected"],
        "the publisher was not killed": figures["publisher_killed"],
        "nothing was outstanding when the publisher died, so its death showed nothing": figures["outstanding_at_kill"]
        > 0,
        "the rest did not come from the follower": figures["bytes_after_kill"][figures["follower"]] > 0,
        "the loss did not fall": figures["loss_last"] < figures["loss_first"],
    }
    return [complaint for complaint, kept in checks.items() if not kept]


def _wait_whole(stage: Stage, who: str) -> None:
    """Until a seed holds and has announced everything. DemoError if that takes too long."""
    from dhtdata.config import load_settings
    from dhtdata.control.client import PeerClient
    from dhtdata.store import Store

    os.environ["XDG_RUNTIME_DIR"] = str(stage.runtime)
    settings = load_settings({"home": stage.home(who)}, {})
    deadline_s = time.monotonic() + FOLLOW_S
    with (
        Store.open(settings.store) as store,
        PeerClient.connect(store, settings, start=False, keeps_alive=False) as peer,
    ):
        while time.monotonic() < deadline_s:
            datasets = peer.status().datasets
            if datasets and all(entry.bytes_held == entry.bytes and entry.announced for entry in datasets):
                return
            time.sleep(0.1)
    raise DemoError(f"the {who} did not hold everything within {FOLLOW_S:.0f} s: {stage.log_end(who)}")


@contextlib.contextmanager
def _stage() -> Iterator[Stage]:
    stage = Stage(Path(tempfile.mkdtemp(prefix="dhtdata-demo-")))
    try:
        yield stage
    finally:
        # A second Ctrl-C must not leave half of it behind.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        stage.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait_gone(pid: int) -> None:
    deadline_s = time.monotonic() + END_S
    while _lives(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    """Whether a process that is not our child runs; one that ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").exists()


def _table(figures: dict[str, Any]) -> None:
    from rich.console import Console

    from dhtdata.cli.output import table

    after = _size(figures["bytes_after_kill"][figures["follower"]])
    named = {figures["publisher"]: "publisher, then killed", figures["follower"]: f"follower, {after} after that"}
    received = sorted(figures["providers"].items(), key=lambda entry: entry[0] != figures["publisher"])
    rows = [
        ("rows", f"{figures['rows']:,} of {figures['rows_expected']:,}, each exactly once"),
        *((f"from {address}", f"{_size(count)} ({named.get(address, 'another')})") for address, count in received),
        ("blocks verified", f"{figures['blocks_verified']:,}"),
        ("time to first batch", f"{figures['first_batch_s']:.2f} s"),
        ("rows a second, training included", f"{figures['rows_s']:,.0f}"),
        ("loss", f"{figures['loss_first']:.3f} → {figures['loss_last']:.3f} nats a byte"),
        ("the whole demo", f"{figures['total_s']:.1f} s"),
    ]
    print()
    Console(highlight=False).print(table("", "what", "figure", rows=rows))


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n")[0] if __doc__ else None)
    default = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("path", nargs="?", type=Path, default=default, help="folder of source files")
    parser.add_argument("--json", action="store_true", help="print nothing but one line of JSON")
    arguments = parser.parse_args()
    if not arguments.path.is_dir():
        parser.error(f"{arguments.path} is not a folder")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
