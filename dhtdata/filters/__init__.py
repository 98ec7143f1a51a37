"""Row filters: from what a user wrote to which rows of a split count.

| module | part |
|---|---|
| ``text`` | the text, and a caret under what is wrong with it |
| ``literals`` | literals as scalars of the type that they meet |
| ``terms``, ``parse`` | text to an Arrow expression |
| ``tree`` | an Arrow expression to its parts |
| ``evaluate`` | an expression over a batch |
| ``filter`` | `Filter` |
| ``bounds`` | what statistics say of row ranges |
| ``prune`` | row ranges that cannot match |
| ``selection`` | kept rows: positions and source rows, the file |
| ``kept`` | the folder of those files, shared by all processes of a machine |

Everything here works on stored types (`dhtdata.tables.schema`), and nothing fetches: `dhtdata.mount.filtering` does.
"""

from dhtdata.filters.filter import Filter, read_filter
from dhtdata.filters.kept import kept_selection, selection_key
from dhtdata.filters.selection import SEGMENT_ROWS, Segments, Selection, SelectionWriter

__all__ = [
    "SEGMENT_ROWS",
    "Filter",
    "Segments",
    "Selection",
    "SelectionWriter",
    "kept_selection",
    "read_filter",
    "selection_key",
]
