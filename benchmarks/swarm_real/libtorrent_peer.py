"""One libtorrent session in a process of its own, told what to do in lines of JSON. Needs libtorrent, nothing of ours.

``libtorrent_peer.py IP FOLDER [FILES]``: a seeder if FILES, a folder, is given: says its port and makes the torrent. A
leecher says its port, reads where the others are, fetches into FOLDER and says so once every file is verified and
fsynced. Settings are those that made it fastest on loopback: no encryption, no uTP, no choking, 1 MiB pieces.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import libtorrent as lt  # type: ignore[import-not-found]

PIECE_BYTES = 1 << 20
LIMIT_S = 300.0
_LOOK_S = 0.01


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # the newest release wants other names for the same
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the parent
    ip, folder, *files = sys.argv[1:]
    host = lt.session(
        {
            "listen_interfaces": f"{ip}:0",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "allow_multiple_connections_per_ip": True,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "alert_mask": 0,
            "unchoke_slots_limit": -1,
            "mixed_mode_algorithm": 0,
        }
    )
    host.apply_settings({"out_enc_policy": 2, "in_enc_policy": 2})
    while not host.listen_port():
        time.sleep(_LOOK_S)
    if files:
        seed(host, Path(folder), Path(files[0]))
    else:
        leech(host, Path(folder))


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def add(host: Any, info: Any, folder: Path) -> Any:
    wanted = lt.add_torrent_params()
    wanted.ti, wanted.save_path, wanted.max_connections, wanted.max_uploads = info, str(folder), 100, 100
    return host.add_torrent(wanted)


def seed(host: Any, torrent_at: Path, files: Path) -> None:
    listed = lt.file_storage()
    lt.add_files(listed, str(files))
    torrent = lt.create_torrent(listed, PIECE_BYTES, lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, str(files.parent))
    torrent_at.write_bytes(lt.bencode(torrent.generate()))
    handle = add(host, lt.torrent_info(str(torrent_at)), files.parent)
    while not handle.status().is_seeding:
        time.sleep(_LOOK_S)
    say(port=host.listen_port())
    for _ in sys.stdin:
        say(sent=handle.status().total_payload_upload)


def leech(host: Any, folder: Path) -> None:
    say(port=host.listen_port())
    told = json.loads(sys.stdin.readline())
    handle = add(host, lt.torrent_info(told["torrent"]), folder)
    for ip, port in told["others"]:
        handle.connect_peer((ip, port))
    deadline_s = time.monotonic() + LIMIT_S
    while not handle.status().is_seeding:
        time.sleep(_LOOK_S)
        if time.monotonic() > deadline_s:
            return say(failure=f"libtorrent was not done within {LIMIT_S:.0f} s")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    say(done=True)
    sys.stdin.readline()  # goes on serving the others


main()
