"""Start of every ``dhtdata`` command: the only place where an error becomes an exit code.

Codes are listed in `dhtdata.cli.exits`. Nothing heavy is imported before it is known to be needed: ``--version`` loads
neither typer nor rich.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from dhtdata.errors import DhtDataError


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Expected errors end as one sentence on standard error."""
    try:
        return _dispatch(list(arguments))
    except DhtDataError as failure:
        from dhtdata.cli.exits import code_of

        return _fail(type(failure).__name__, str(failure), code_of(failure), arguments)
    except KeyboardInterrupt:
        from dhtdata.cli.exits import INTERRUPTED

        return _fail("Interrupted", "interrupted", INTERRUPTED, arguments)
    except BrokenPipeError:
        from dhtdata.cli.exits import BROKEN_PIPE

        # Whoever read us has gone; without this the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def run() -> None:
    """Entry point of the ``dhtdata`` script."""
    sys.exit(main(sys.argv[1:]))


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from importlib.metadata import version

        sys.stdout.write(f"dhtdata {version('dhtdata')}\n")
        return 0
    from dhtdata.cli.app import invoke

    return invoke(arguments)


def _fail(kind: str, message: str, code: int, arguments: Sequence[str]) -> int:
    sentence = " ".join(message.split())
    if "--json" in arguments:
        error = {"class": kind, "message": sentence, "exit_code": code}
        sys.stdout.write(json.dumps({"error": error}, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    sys.stderr.write(f"dhtdata: {sentence}\n")
    return code


if __name__ == "__main__":
    run()
