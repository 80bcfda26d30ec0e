"""Tracing a run of several processes: who they are, and what each says of a step."""
