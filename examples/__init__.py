"""Examples; each is a task and a script that trains it with tracing."""
