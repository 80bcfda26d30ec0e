"""What each command does: one call of the Python interface, what it prints, what it writes."""
