"""A notebook: `notebook.py FOLDER CELL…` runs cells in IPython in a folder, and prints what they have
shown, as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from IPython.core.interactiveshell import InteractiveShell


def main(folder: str, cells: list[str]) -> None:
    os.chdir(folder)
    # As a kernel has it, and not the folder of this file.
    sys.path[0] = ""
    shell = InteractiveShell.instance(colors="NoColor", history_length=0)
    run_cell: Any = shell.run_cell
    values: list[object] = []
    shell.user_ns["shown"] = values
    for cell in cells:
        run_cell(cell, store_history=True).raise_error()
    print(json.dumps({"shown": values}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
