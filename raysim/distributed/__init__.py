"""One federation on Ray: connection, placement, client and server actors, fault handling."""
