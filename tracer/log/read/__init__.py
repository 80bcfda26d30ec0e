"""A run log that is read: every row is compared with its checksum."""
