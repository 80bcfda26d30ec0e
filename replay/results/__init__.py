"""Results: labelled tables that can be saved and compared."""
