"""What the benchmarks that replay traces share: where the traces are, and one run of `tram simulate`.

The traces are published and not part of the project: docs/concepts/simulator.md says where they come from. TRAM_TRACES
names the directory they are in.
"""

import json
import os
import pathlib
import subprocess
import sys

BINARY = os.environ.get("TRAM_BINARY", "tram")


def trace(*parts):
    """The path of a trace; ends the benchmark when it is not there."""
    root = os.environ.get("TRAM_TRACES")
    if not root:
        sys.exit("set TRAM_TRACES to the directory of the traces (docs/concepts/simulator.md)")
    path = pathlib.Path(root, *parts)
    if not path.exists():
        sys.exit(f"there is no trace {path}: docs/concepts/simulator.md says where to get it")
    return str(path)


def simulate(*arguments):
    """The tables of one simulation by their titles, each row by its name."""
    command = [BINARY, "simulate", *arguments, "--output", "json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {table["title"]: {row["name"]: row for row in table["rows"]} for table in json.loads(said)["tables"]}
