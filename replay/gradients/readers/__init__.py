"""Readers of layers: from what autograd saved of an operation to per-example gradients.

``table`` has one row for each operation and names the function that reads it, which lies in the
file of its family. Nothing here is trusted: ``replay.gradients.proof`` compares what each reader
gives with plain backward passes, so a new one needs no proof of its own.
"""
