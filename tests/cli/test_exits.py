"""Errors and exit codes."""

from __future__ import annotations

import json

import pytest

from dhtdata.__main__ import main
from dhtdata.cli import exits
from dhtdata.errors import DhtDataError


def every_error() -> list[type[DhtDataError]]:
    return DhtDataError.__subclasses__()


def test_every_class_of_error_has_an_exit_code_of_its_own() -> None:
    assert set(every_error()) == set(exits.CODES)
    assert len(set(exits.CODES.values())) == len(exits.CODES)


@pytest.mark.parametrize("kind", every_error())
def test_an_error_keeps_its_code_in_subclasses(kind: type[DhtDataError]) -> None:
    inherited = type("Inherited", (kind,), {})
    assert exits.code_of(inherited("x")) == exits.CODES[kind]


def test_a_bare_error_is_a_defect() -> None:
    assert exits.code_of(DhtDataError("x")) == exits.DEFECT


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nonsense"], "no such command 'nonsense'; see dhtdata --help"),
        (["ls", "--bogus"], "no such option: --bogus; see dhtdata ls --help"),
        (["info"], "missing argument 'TARGET'; see dhtdata info --help"),
        (["head", "x", "-n", "0"], "see dhtdata head --help"),
        (["get", "x", "--as", "csv"], "see dhtdata get --help"),
        (["publish", "--name", "x"], "nothing to publish"),
        (["publish", "a.csv"], "a dataset needs a name"),
        (["publish", "a.csv", "--split", "train=b.csv", "--name", "x"], "not both"),
        (["publish", "--split", "train", "--name", "x"], "write it like train="),
        (["publish", "a.csv", "--name", "x", "--dry-run", "--seed"], "--dry-run stores nothing"),
        (["get", "x", "--mirror", "m", "--split", "train"], "--mirror writes whole datasets"),
    ],
)
def test_a_wrong_input_ends_with_code_2_and_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == exits.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dhtdata: ") and shown.err.count("\n") == 1
    assert sentence in shown.err


def test_with_json_an_error_is_a_document_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "a.csv", "--json"]) == exits.USAGE
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["class"], error["exit_code"]) == ("ConfigError", 2)
    assert shown.err == f"dhtdata: {error['message']}\n"


def test_no_arguments_show_the_help_and_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == exits.USAGE
    assert "Usage: dhtdata" in capsys.readouterr().out


def test_version_answers_before_anything_else_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == exits.OK
    assert capsys.readouterr().out.startswith("dhtdata ")
