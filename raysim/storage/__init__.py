"""The files of a run: run directory, checkpoints, event log and records."""
