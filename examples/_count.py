"""
Count what is in a share of this interpreter's standard library, and print it as one line of JSON.

The program that each job of `census.py` runs, on its own: it knows nothing of fargate_runner but one variable.
"""

import argparse
import ast
import json
import os
import platform
import sys
import sysconfig
import warnings
from collections import defaultdict
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

parser = argparse.ArgumentParser()
parser.add_argument("--share", type=int, default=0, help="which share of the files to count, from 0")
parser.add_argument("--of", type=int, default=1, help="how many shares there are")
parser.add_argument("--module", help="count this one only")
parser.add_argument("--fail-first", action="store_true", help="let the first attempt fail, to show a retry")
args = parser.parse_args()

if args.fail_first and os.environ.get("FARGATE_RUNNER_ATTEMPT") == "1":
    sys.exit("told to fail at the first attempt (--fail-first); the second one will count")

found = (path for path in LIBRARY.rglob("*.py") if not LEFT_OUT & set(path.relative_to(LIBRARY).parts))
files = sorted(found)[args.share :: args.of]
if args.module:
    files = [LIBRARY / f"{args.module}.py"]
    if not files[0].exists():
        sys.exit(f"Python {platform.python_version()} has no module {args.module!r} in {LIBRARY}")

packages = defaultdict(lambda: {"files": 0, "lines": 0, "functions": 0, "classes": 0})
longest = {"lines": 0, "name": "", "file": ""}
warnings.simplefilter("ignore", SyntaxWarning)
for path in files:
    source, where = path.read_bytes(), path.relative_to(LIBRARY)
    count = packages[where.parts[0].removesuffix(".py")]
    count["files"] += 1
    count["lines"] += source.count(b"\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            count["classes"] += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count["functions"] += 1
            lines = node.end_lineno - node.lineno + 1
            if lines > longest["lines"]:
                longest = {"lines": lines, "name": node.name, "file": str(where)}

print(json.dumps({"python": platform.python_version(), "packages": packages, "longest": longest}))
