"""The package's face: its names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import dhtdata


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=15)
    return done.stdout.strip()


@pytest.mark.parametrize("name", dhtdata.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(dhtdata, name).__name__ == name
    assert name in dir(dhtdata)


def test_the_version_is_that_of_the_distribution() -> None:
    assert dhtdata.__version__ == version("dhtdata")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = dhtdata.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, dhtdata; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    foreign = set(run(code).split()) - set(
        run("import sys; print(*{n.partition('.')[0] for n in sys.modules})").split()
    )
    assert foreign & {"numpy", "pyarrow", "msgspec", "blake3", "cryptography", "torch", "aiohttp", "typer"} == set()


@pytest.mark.parametrize("name", ["mount", "publish"])
@pytest.mark.parametrize("before", ["", "import dhtdata.{name}", "from dhtdata.{name} import {name} as other"])
def test_functions_are_not_hidden_by_the_packages_of_their_names(name: str, before: str) -> None:
    code = f"{before.format(name=name)}\nimport dhtdata\nimport dhtdata.mount.dataset\nprint(callable(dhtdata.{name}))"
    assert run(code) == "True"
