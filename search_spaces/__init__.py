"""Search spaces, one per file: SPACE maps keys to distributions, POINTS are tried first."""
