"""Learning tasks: data, network, loss and metrics; one module per task that `raysim list tasks` shows."""
