"""The processes of one job, on one machine or several: torchrun starts them."""
