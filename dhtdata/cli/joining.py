"""``network``: the file that makes a peer a member of a private network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dhtdata.cli.output import Output, facts, plain
from dhtdata.cli.session import JsonOption
from dhtdata.network import load_network, new_network, save_network


def network(
    file: Annotated[
        Path, typer.Argument(help="The network's file; made if it is not there.", metavar="FILE", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a private network, or show the fingerprint of one: never its secret, which is in FILE.

    Whoever has the file is a member. Peers of a private network answer members only; others get silence.

    Example: `dhtdata network lab.network`
    """
    made = not file.exists()
    found = new_network() if made else load_network(file)
    if made:
        save_network(file, found)
    document = {"file": str(file), "fingerprint": found.fingerprint, "made": made}
    Output(as_json).result(
        document,
        facts([("file", f"{file} ({'made now' if made else 'was there'})"), ("fingerprint", found.fingerprint)]),
        "Whoever has this file is a member: hand it to members only, over a channel that you trust.",
        plain(f"To use it, add --network {file} to a command, or set DHTDATA_NETWORK={file.absolute()}."),
    )
