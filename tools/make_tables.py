"""Make `ecgmm/tables` from published tables.

    python tools/make_tables.py CHALLENGE PTBXL

CHALLENGE has weights.csv, dx_mapping_scored.csv, dx_mapping_unscored.csv and LICENSE of the
evaluation code of the PhysioNet/CinC Challenge 2020 (BSD-2), PTBXL scp_statements.csv of PTB-XL
1.0.3 (CC BY 4.0).

`weights.csv`: the 27 x 27 reward matrix with the three pairs of equivalent classes merged.
`ptbxl_statements.csv`: the 71 statements with description and classes.
`challenge2020.csv` is kept by hand (names, spellings); it is held against the official codes here.
"""

import sys
from pathlib import Path

import pandas as pd

from ecgmm.labels import Labels, code_names

challenge, ptbxl = map(Path, sys.argv[1:3])
target = Path(__file__).parents[1] / "ecgmm" / "tables"
labels = Labels.challenge2020()

weights = pd.read_csv(challenge / "weights.csv", index_col=0)
weights.index = weights.index.astype(str)
for label in labels.items:  # merging is only right if equivalent classes have equal rows
    for other in label.same_as:
        assert (weights.loc[label.code] == weights.loc[other]).all(), label
kept = list(labels.codes)
assert [c for c in weights.index if c in kept] == kept, "not in the order of weights.csv"
weights.loc[kept, kept].to_csv(target / "weights.csv")

official = [
    code
    for kind in ("scored", "unscored")
    for code in pd.read_csv(challenge / f"dx_mapping_{kind}.csv", dtype=str)["SNOMED CT Code"]
]
assert set(official) == set(code_names()), "challenge2020.csv has other codes than the Challenge"

statements = pd.read_csv(ptbxl / "scp_statements.csv", dtype=str, keep_default_na=False)
statements = statements.rename(
    columns={
        statements.columns[0]: "code",
        "diagnostic_class": "superclass",
        "diagnostic_subclass": "subclass",
    }
)
for kind in ("diagnostic", "form", "rhythm"):
    statements[kind] = (statements[kind] == "1.0").astype(int)
columns = ["code", "description", "diagnostic", "form", "rhythm", "superclass", "subclass"]
statements[columns].to_csv(target / "ptbxl_statements.csv", index=False)
