"""One of several programs that want the peer of a store at the same moment: ``python -m benchmarks.resume_real.racer``.

Hears the settings as a line of JSON, then a line for every race: connects as a mount does, starting the peer if none
runs, says who it is, and disconnects when the next line comes.
"""

from __future__ import annotations

import json
import sys

from benchmarks.mortal import die_with_parent, say
from dhtdata.config import load_settings
from dhtdata.control import PeerClient
from dhtdata.errors import DhtDataError
from dhtdata.store import Store


def main() -> None:
    die_with_parent()
    settings = load_settings(json.loads(sys.stdin.readline()), environment={})
    with Store.open(settings.store) as store:
        say(ready=True)
        while sys.stdin.readline():
            try:
                with PeerClient.connect(store, settings, start=True) as client:
                    say(pid=client.status().pid)
                    sys.stdin.readline()
            except DhtDataError as failure:
                say(failure=f"{type(failure).__name__}: {failure}")
            say(left=True)


if __name__ == "__main__":
    main()
