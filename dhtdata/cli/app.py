"""The ``dhtdata`` command: its families put together, and typer's own errors translated."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from dhtdata.cli import describing, fetching, keeping, publishing, watching
from dhtdata.errors import ConfigError

_PUBLISH, _READ, _KEEP, _WATCH = "Publish and seed", "Read", "Keep", "Look"
_EXIT_CODES = (
    "Exit codes: 0 done · 2 change an input · 3 malformed or newer bytes · 4 wrong digest or signature · "
    "5 nobody has it · 6 a peer failed · 7 local store · 130 interrupted · 1 a defect."
)

app = typer.Typer(
    name="dhtdata",
    help="Share machine-learning datasets without a central repository.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

for panel, commands in (
    (_PUBLISH, (publishing.publish, publishing.seed, publishing.ticket, publishing.stop)),
    (_READ, (fetching.get, describing.head, describing.info)),
    (_KEEP, (keeping.ls, keeping.verify, keeping.pin, keeping.unpin, keeping.rm, keeping.gc)),
    (_WATCH, (watching.status, watching.peers, watching.doctor, watching.version)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)

# typer keeps its parser's exceptions in a private module, but shows their tree through this public member of it.
_ParserError = typer.BadParameter.__mro__[2]


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Typer's complaints leave as `ConfigError`."""
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="dhtdata")
    except typer.Abort as failure:
        raise KeyboardInterrupt from failure
    except _ParserError as failure:
        message = getattr(failure, "message", "")
        if not message:  # no arguments at all: the help has been printed
            return 2 if not arguments else 0
        context = getattr(failure, "ctx", None)
        path = context.command_path if context is not None else "dhtdata"
        raise ConfigError(f"{_sentence(failure)}; see {path} --help") from failure
    return int(code or 0)


def _sentence(failure: BaseException) -> str:
    text = str(failure.format_message()) if hasattr(failure, "format_message") else str(failure)
    return text[:1].lower() + text[1:].rstrip(".")
