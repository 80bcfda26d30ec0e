"""The channel from the training thread to the file: a ring of rows and a writer thread."""
