"""Tensors to bytes and back; knows no HDF5."""
