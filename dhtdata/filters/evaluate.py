"""Arrow expressions over batches of stored columns (door of ``pyarrow.acero``)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def kind_of(expression: pc.Expression, stored: pa.Schema) -> pa.DataType | None:
    """Type of an expression over these columns; None if it cannot be one."""
    try:
        return _projected(expression, stored.empty_table()).type
    except (pa.ArrowException, TypeError):
        return None


def true_rows(expression: pc.Expression, batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Where a condition is true, shape (rows,). pyarrow's own errors, such as an overflow."""
    column = _projected(expression, pa.Table.from_batches([batch]))
    found: NDArray[np.bool_] = pc.fill_null(column, False).to_numpy()
    return found


def _projected(expression: pc.Expression, table: pa.Table) -> pa.ChunkedArray:
    from pyarrow.acero import Declaration, ProjectNodeOptions, TableSourceNodeOptions

    source = Declaration("table_source", TableSourceNodeOptions(table))
    project = Declaration("project", ProjectNodeOptions([expression], ["value"]), inputs=[source])
    return project.to_table(use_threads=False).column(0)
