"""What would have happened: the run taken again with other weights of some examples."""
