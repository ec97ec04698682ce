"""Search spaces, one per file. SPACE maps keys to distributions; the values in POINTS are tried first."""
