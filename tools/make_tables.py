"""Make `ecgmm/tables` from the evaluation tables of the PhysioNet/CinC Challenge 2020 (BSD-2).

    python tools/make_tables.py FOLDER

FOLDER holds weights.csv, dx_mapping_scored.csv, dx_mapping_unscored.csv and LICENSE.

`weights.csv`: the 27 x 27 reward matrix with the three pairs of equivalent classes merged, so 24 x
24.
`codes.csv`: every SNOMED code of the two mapping files with its abbreviation, name and whether it
is scored.
"""

import sys
from pathlib import Path
import pandas as pd
from ecgmm.data import CLASSES

source, target = Path(sys.argv[1]), Path(__file__).parents[1] / "ecgmm" / "tables"
weights = pd.read_csv(source / "weights.csv", index_col=0)
weights.index = weights.index.astype(str)
for cls in CLASSES:  # merging is only right if equivalent classes have equal rows
    for other in cls.same_as:
        assert (weights.loc[cls.code] == weights.loc[other]).all(), cls
kept = [c.code for c in CLASSES]
assert [c for c in weights.index if c in kept] == kept, (
    "the classes are not in the order of weights.csv"
)
weights.loc[kept, kept].to_csv(target / "weights.csv")
scored, unscored = (
    pd.read_csv(source / f"dx_mapping_{k}.csv", dtype=str) for k in ("scored", "unscored")
)
codes = pd.concat([scored.assign(scored=1), unscored.assign(scored=0)])
codes = codes.rename(
    columns={"SNOMED CT Code": "code", "Abbreviation": "abbreviation", "Dx": "name"}
)
codes[["code", "abbreviation", "name", "scored"]].to_csv(target / "codes.csv", index=False)
(target / "LICENSE").write_text((source / "LICENSE").read_text())
