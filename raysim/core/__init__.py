"""The contracts between algorithms, tasks and the engine, and helpers that every package uses."""
