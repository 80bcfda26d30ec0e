"""Names that questions choose by. It imports nothing, so that help and completion come at once."""

SELF = "self"  # a command, which may be taken for a method
EPOCH, STEP = "epoch", "step"  # periods
PLACEMENTS = ("even", "epochs", "early", "late", "rate")  # of checkpoints
COUNTS = (1, 2, 5, 10, 20, 50)  # of checkpoints, in a sweep
