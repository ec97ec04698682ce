"""One federation without Ray: plan, validation, round loop, evaluation and the local fleet."""
