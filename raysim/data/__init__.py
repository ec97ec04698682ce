"""From a table of cases to the arrays of every site: reading, partition, preparation, cache."""
