"""Inner products of per-example gradients; knows no log and no step."""
