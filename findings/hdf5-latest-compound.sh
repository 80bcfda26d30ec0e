#!/usr/bin/env bash
# A table that h5py writes with libver="latest", as its page on SWMR says, cannot be opened by the HDF5 in PyTables.
# Versions: h5py 3.16.0 (HDF5 2.0.0), tables 3.11.1 (HDF5 1.14.6), numpy 2.4.6.
# One would guess: SWMR came with HDF5 1.10, so a file for it opens in every HDF5 from 1.10 on; plain arrays do.
# What happens: "latest" is of the library that writes. HDF5 2.0 gives compound types a new version, whether they
#   need it or not. libver=("v110", "v110") writes the same table for SWMR and is read.
# Output seen:
#   h5py 3.16.0, HDF5 2.0.0; tables 3.11.1, HDF5 1.14.6
#   latest: array read, table "bad version number for datatype message"; v110: array read, table read
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile h5py==3.16.0 tables==3.11.1 numpy==2.4.6
export HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1
venv/bin/python -W ignore - <<'PY' > written
import h5py
import numpy as np

for name, libver in (("latest", "latest"), ("v110", ("v110", "v110"))):
    with h5py.File(f"{name}.h5", "w", libver=libver) as file:
        file["array"] = np.arange(3)
        file["table"] = np.zeros(3, [("step", "<i8"), ("loss", "<f8")])
        file.swmr_mode = True
print(f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}")
PY
# in a process of its own: the two libraries share no HDF5
venv/bin/python -W ignore - <<'PY'
import sys
from pathlib import Path

import tables


def read(name, node):
    """Return whether a dataset is read, or the last line of HDF5's own trace."""
    try:
        with tables.open_file(f"{name}.h5") as file:
            return "read" if len(file.get_node(f"/{node}")[:]) == 3 else "wrong"
    except tables.HDF5ExtError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return f'"{lines[lines.index("End of HDF5 error back trace") - 2]}"'


versions = f"{Path('written').read_text().strip()}; tables {tables.__version__}, HDF5 {tables.hdf5_version}"
seen = "; ".join(f"{name}: array {read(name, 'array')}, table {read(name, 'table')}" for name in ("latest", "v110"))
print(versions)
print(seen)
if (versions, seen) != (
    "h5py 3.16.0, HDF5 2.0.0; tables 3.11.1, HDF5 1.14.6",
    'latest: array read, table "bad version number for datatype message"; v110: array read, table read',
):
    sys.exit("the finding no longer holds")
PY
