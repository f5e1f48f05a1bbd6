"""A script as somebody has it: arguments, a file that it writes, a module beside it, words on both streams."""

import argparse
import json
import os
import sys
from pathlib import Path

import fitting

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--data", type=Path, required=True)
given = parser.parse_args()
print(f"fitting with {given.lr}")
print("a warning", file=sys.stderr)
Path("model.bin").write_text(fitting.model(given.data.read_text(), given.lr))
Path("parts").mkdir()
for i in range(2):
    Path(f"parts/{i}.txt").write_text(str(i))
Path(os.environ["EVPIPE_RESULT"]).write_text(json.dumps({"score": given.lr * 10, "folder": Path.cwd().name}))
