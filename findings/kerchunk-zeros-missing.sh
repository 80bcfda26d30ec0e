#!/usr/bin/env bash
# An HDF5 file of h5py read through kerchunk and xarray has NaN where it held 0, and its integers become floats.
# Versions: kerchunk 0.2.10, xarray 2026.9.0, zarr 3.1.6, h5py 3.16.0.
# One would guess: reading by reference gives the numbers that xarray gives for the file itself.
# What happens: HDF5's fill value, 0 unless set, becomes zarr's fill_value, which xarray takes for "missing"
#   in zarr format 2. A score of 0, the ID 0 and the flag False are lost.
# Output seen:
#   kerchunk 0.2.10, xarray 2026.9.0, zarr 3.1.6, h5py 3.16.0
#   direct [[0.0, 0.5, 0.0], [0, 1, 2], [False, True, True]]; by reference [[nan, 0.5, nan], [nan, 1.0, 2.0], [nan,
#   True, True]]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile kerchunk==0.2.10 xarray==2026.9.0 zarr==3.1.6 h5py==3.16.0 h5netcdf==1.8.2
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import h5py
import numpy as np
import xarray
from kerchunk.hdf import SingleHdf5ToZarr

versions = ", ".join(f"{p} {version(p)}" for p in ("kerchunk", "xarray", "zarr", "h5py"))
with h5py.File("plain.h5", "w") as file:
    file["score"] = np.array([0.0, 0.5, 0.0])
    file["id"] = np.arange(3)
    file["flag"] = np.array([False, True, True])

direct = xarray.open_dataset("plain.h5", engine="h5netcdf", phony_dims="sort")
references = SingleHdf5ToZarr("plain.h5").translate()
options = {"storage_options": {"fo": references}, "consolidated": False}
by_reference = xarray.open_dataset("reference://", engine="zarr", backend_kwargs=options)
seen = {}
for name, data in (("direct", direct), ("by reference", by_reference)):
    seen[name] = [data[key].values.tolist() for key in ("score", "id", "flag")]
print(versions)
print("; ".join(f"{name} {lists}" for name, lists in seen.items()))
nan = float("nan")
holds = seen["direct"] == [[0.0, 0.5, 0.0], [0, 1, 2], [False, True, True]]
holds = holds and str(seen["by reference"]) == str([[nan, 0.5, nan], [nan, 1.0, 2.0], [nan, True, True]])
if versions != "kerchunk 0.2.10, xarray 2026.9.0, zarr 3.1.6, h5py 3.16.0" or not holds:
    sys.exit("the finding no longer holds")
PY
