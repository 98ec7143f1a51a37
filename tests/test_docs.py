"""What is written about the command line is complete, and what the README shows runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from dhtdata.cli import exits
from dhtdata.cli.app import app
from dhtdata.config import LEAST_RATE_BYTES_S, Settings, rate_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> dict[str, Any]:
    """Every command by the words that call it, those of families such as ``dht status`` too."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for below, member in getattr(command, "commands", {"": command}).items():
            found[f"{name} {below}".rstrip()] = member
    return found


COMMANDS = commands()
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_command_line_has_the_commands_that_were_promised() -> None:
    promised = "publish seed get ls info head plan verify status peers pin unpin rm gc ticket network limit stop"
    looking = {"dht status", "dht lookup", "dht ping", "doctor", "version"}
    assert set(COMMANDS) == set(promised.split()) | looking


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_the_readme(name: str) -> None:
    assert re.search(rf"`dhtdata {name}\b", README)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example_of_that_command(name: str) -> None:
    assert f"Example: `dhtdata {name}" in COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    unexplained = [parameter.name for parameter in COMMANDS[name].params if not parameter.help]
    assert unexplained == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def test_every_option_that_the_readme_names_exists() -> None:
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    commands_and_settings = README[README.index("## Commands") : README.index("## Words")]
    named = set(re.findall(r"`?(--[a-z][a-z-]*)", commands_and_settings))
    assert named - options == {"--help"}


def test_the_readme_lists_the_exit_codes_as_the_program_does() -> None:
    assert exits.__doc__ is not None
    rows = [line.removeprefix("    ") for line in exits.__doc__.splitlines() if line.startswith("| ")]
    assert rows and all(row in README for row in rows)
    for kind, code in exits.CODES.items():
        assert any(row.startswith(f"| {code} | {kind.__name__} |") for row in rows)


def test_the_readme_lists_every_setting() -> None:
    for field in fields(Settings):
        assert f"`DHTDATA_{field.name.upper()}`" in README


def test_the_readme_says_the_least_rate() -> None:
    assert f"at least `{rate_text(LEAST_RATE_BYTES_S)}`" in README
    for panel in (parameter.rich_help_panel for parameter in COMMANDS["limit"].params if parameter.name == "up"):
        assert f"at least {rate_text(LEAST_RATE_BYTES_S)}" in panel


def test_links_in_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


@pytest.mark.slow_e2e
@pytest.mark.timeout(240)
def test_the_blocks_of_the_readme_run(tmp_path: Path) -> None:
    blocks = BLOCK.findall(README)
    assert len(blocks) >= 5
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DHTDATA_")}
    folder = Path(sys.executable).parent
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    work = tmp_path / "work"
    work.mkdir()
    environment = kept | {
        "DHTDATA_HOME": str(tmp_path / "home"),
        "DHTDATA_LISTEN": "127.0.0.1",
        "XDG_RUNTIME_DIR": str(runtime),
        "SLURM_TMPDIR": str(tmp_path / "scratch"),
        "PATH": f"{folder}{os.pathsep}{kept.get('PATH', '')}",
    }
    for language, source in blocks:
        command = ["sh", "-eu", "-c", source] if language == "bash" else [sys.executable, "-c", source]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"
    # The job's peer would wait a minute for more.
    stop = [sys.executable, "-m", "dhtdata", "stop", "--store", str(tmp_path / "scratch" / "dhtdata")]
    subprocess.run(stop, cwd=work, env=environment, check=True, timeout=60)
