"""The ``dhtdata`` command: its families put together, and typer's own errors translated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from dhtdata.cli import describing, dht, fetching, joining, keeping, limits, planning, publishing, watching
from dhtdata.cli.exits import INTERRUPTED, USAGE
from dhtdata.errors import ConfigError

_PUBLISH, _READ, _KEEP, _WATCH = "Publish and seed", "Read", "Keep", "Look"
_EXIT_CODES = (
    "Exit codes: 0 done · 2 change an input · 3 malformed or newer bytes · 4 wrong digest or signature · "
    "5 nobody has it · 6 a peer failed · 7 local store · 130 interrupted · 1 a defect."
)

app = typer.Typer(
    name="dhtdata",
    epilog=_EXIT_CODES,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

for panel, commands in (
    (
        _PUBLISH,
        (publishing.publish, publishing.seed, publishing.ticket, joining.network, limits.limit, publishing.stop),
    ),
    (_READ, (fetching.get, describing.head, describing.info, planning.plan)),
    (_KEEP, (keeping.ls, keeping.verify, keeping.pin, keeping.unpin, keeping.rm, keeping.gc)),
    (_WATCH, (watching.status, watching.peers, watching.doctor, watching.version)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)

app.add_typer(
    dht.app,
    name="dht",
    rich_help_panel=_WATCH,
    help="Look at the DHT: the peer's standing, the way of a look-up, who is at an address.",
)


@app.callback()
def _options(
    shown: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Share machine-learning datasets without a central repository."""
    if shown:
        raise ConfigError("--version stands alone: dhtdata --version; dhtdata version tells more")


# typer keeps its parser's exceptions in a private module, but shows their tree through this public member of it.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Typer's complaints leave as `ConfigError`."""
    if list(arguments) in ([], ["dht"]):
        app([*arguments, "--help"], standalone_mode=False, prog_name="dhtdata")
        return USAGE
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="dhtdata")
    except typer.Abort as failure:
        raise KeyboardInterrupt from failure
    except _ParserError as failure:
        context = getattr(failure, "ctx", None)
        path = context.command_path if context is not None else _called(arguments)
        raise ConfigError(f"{_sentence(failure)}; see {path} --help") from failure
    if code == INTERRUPTED:
        # Typer has turned Ctrl-C into an exit code; the sentence and the JSON line are made where all others are.
        raise KeyboardInterrupt
    return int(code or 0)


def _called(arguments: Sequence[str]) -> str:
    """The command that a command line calls: an option that lacks its value comes without a context."""
    words, command = ["dhtdata"], typer.main.get_command(app)
    for argument in arguments:
        members = getattr(command, "commands", {})
        if argument not in members:
            break
        words.append(argument)
        command = members[argument]
    return " ".join(words)


def _sentence(failure: BaseException) -> str:
    text = str(failure.format_message()) if hasattr(failure, "format_message") else str(failure)
    return text[:1].lower() + text[1:].rstrip(".")
