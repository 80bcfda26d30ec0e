"""Proofs that what readers give is right, on passes that were run and for those to come.

``layout``: which rows of a result are whose. ``plan``: each parameter's gradients against plain
backward passes. ``steady``: whether that holds for every pass of the same graph. ``follow``: a pass
read by a plan that was proven. ``independence``: examples against each of them run alone.
"""
