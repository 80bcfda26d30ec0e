"""Vectors of the model's size: blocks, fused small ones, memory for temporaries."""
