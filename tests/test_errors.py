from __future__ import annotations

import inspect

from dhtdata import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    classes = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert drawn == classes
    for name in classes - {"DhtDataError"}:
        assert getattr(errors, name).__bases__ == (errors.DhtDataError,)


def test_every_error_says_what_the_caller_should_do() -> None:
    assert all(kind.__doc__ for kind in errors.DhtDataError.__subclasses__())


def test_an_integrity_error_carries_whom_to_blame() -> None:
    assert errors.IntegrityError("wrong bytes", culprit="10.0.0.1:80").culprit == "10.0.0.1:80"
    assert errors.IntegrityError("wrong bytes").culprit == ""
    assert str(errors.IntegrityError("wrong bytes", culprit="x")) == "wrong bytes"
