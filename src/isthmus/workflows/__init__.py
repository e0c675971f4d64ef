"""One module per verb: the only place that joins models with mathematics."""
