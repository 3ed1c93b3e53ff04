#!/bin/sh
# What only a GPU can show, from a checkout as it is: nothing is installed, no package index is asked.
#
#     tools/gpu.sh [FOLDER] [--cpu]     # FOLDER, or $OUT, or gpu-report: log.txt and results.json
#
# PYTHON names another Python than python3. The status is 0 where every check passed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg exec "${PYTHON:-python3}" "$root/tools/gpu.py" "$@"
