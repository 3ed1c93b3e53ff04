"""Refuse files above 1 MB: data and weights do not belong into the repository.

python tools/large_files.py FILE ...
"""

import sys
from pathlib import Path

LIMIT = 1_000_000  # bytes; the largest notebook has about two thirds of that


def large(paths):
    "The paths of files above the limit, each with its size."
    sizes = {path: Path(path).stat().st_size for path in paths if Path(path).is_file()}
    return [f"{path}: {size / 1e6:.1f} MB" for path, size in sizes.items() if size > LIMIT]


if __name__ == "__main__":
    found = large(sys.argv[1:])
    sys.exit("\n".join(["files above 1 MB:", *found]) if found else 0)
