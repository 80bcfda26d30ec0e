"""HDF5's own structures: what a killed writer leaves of them, and its repair; knows no log."""
