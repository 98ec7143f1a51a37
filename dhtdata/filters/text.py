"""The text of a filter, and where in it something is wrong."""

from __future__ import annotations

import ast
import warnings
from typing import NoReturn

from dhtdata.errors import ConfigError

MAX_CHARACTERS = 4_096
MAX_DEPTH = 64
_SHOWN = 60
_AFTER = " \t\f)"
_INSTEAD = {"=": "==", "&": "and", "|": "or", "!": "not"}
_MALFORMED = (SyntaxError, ValueError, MemoryError, RecursionError)


class FilterText:
    """A filter's text, line breaks as spaces, whose characters errors point at."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(
                f"filter: {len(text):,} characters, at most {MAX_CHARACTERS:,} are allowed: give a long list as an "
                "expression, pyarrow.compute.field('name').isin([...])"
            )
        for position, letter in enumerate(text):
            if letter == "\0" or "\ud800" <= letter <= "\udfff":
                raise ConfigError(f"filter: character {position + 1} is {ascii(letter)}, which no text holds")
        self.text = text.replace("\n", " ").replace("\r", " ")
        if ('"""' in text or "'''" in text) and self.text != text:
            self.refuse(0, "text over several lines: write line breaks inside a literal as \\n")

    def parse(self) -> ast.expr:
        """The expression. ConfigError points at the first character that makes no sense."""
        start = len(self.text) - len(self.text.lstrip())
        if start == len(self.text):
            raise ConfigError("filter: it is empty; leave it out to keep every row")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes such as \d, which mean themselves
                tree = ast.parse(self.text[start:], mode="eval").body
        except _MALFORMED as failure:
            if not isinstance(failure, SyntaxError):
                self.refuse(start, f"this is not a filter ({str(failure) or 'nested too deeply'})")
            position = start + failure.offset - 1 if failure.offset else len(self.text.rstrip())
            instead = _INSTEAD.get(self.text[position : position + 1])
            hint = f": write '{instead}'" if instead else ""
            self.refuse(position, f"this is not a filter ({failure.msg}){hint}")
        for node in ast.walk(tree):
            if isinstance(node, ast.expr):
                node.col_offset = start + self._characters(start, node.col_offset)
                node.end_col_offset = start + self._characters(start, node.end_col_offset or 0)
        end = tree.end_col_offset or 0
        rest = self.text[end:].lstrip(_AFTER)
        if rest:
            self.refuse(len(self.text) - len(rest), "this is not part of a filter")
        self._check_depth(tree)
        return tree

    def _characters(self, start: int, count_bytes: int) -> int:
        return len(self.text[start:].encode()[:count_bytes].decode())

    def _check_depth(self, tree: ast.expr) -> None:
        level = [tree]
        for _ in range(MAX_DEPTH):
            below = [child for node in level for child in ast.iter_child_nodes(node)]
            level = [node for node in below if isinstance(node, ast.expr)]
            if not level:
                return
        self.refuse(level[0].col_offset, f"nested deeper than {MAX_DEPTH}")

    def operator(self, left: ast.expr, right: ast.expr) -> int:
        """Position of the operator between two operands."""
        between = self.text[left.end_col_offset or 0 : right.col_offset]
        return (left.end_col_offset or 0) + len(between) - len(between.lstrip(_AFTER))

    def refuse(self, at: int | ast.expr, reason: str) -> NoReturn:
        """ConfigError with the text and a caret under the character ``at``."""
        position = min(max(at if isinstance(at, int) else at.col_offset, 0), len(self.text))
        first = max(position - _SHOWN, 0)
        shown = self.text[first : position + _SHOWN].replace("\t", " ")
        before, after = "..." if first else "", "..." if position + _SHOWN < len(self.text) else ""
        caret = " " * (len(before) + position - first) + "^"
        raise ConfigError(f"filter: {reason}\n    {before}{shown}{after}\n    {caret}")
