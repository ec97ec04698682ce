"""Tables as CSV without formulas."""

from __future__ import annotations

import pandas as pd

from raysim.storage.csv_file import to_csv


def test_cells_that_a_spreadsheet_would_execute_get_an_apostrophe() -> None:
    table = pd.DataFrame({"image": ["a.png", "=1+1", "-2+3", "-1.5", "@SUM(A1)"], "=x": [1.5, -2.0, 3.0, None, 1e-3]})
    assert to_csv(table).splitlines() == [
        "image,'=x",
        "a.png,1.5",
        "'=1+1,-2.0",
        "'-2+3,3.0",
        "-1.5,",
        "'@SUM(A1),0.001",
    ]
