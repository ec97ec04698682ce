"""Console output, plots and HTML reports of runs and of searches."""
