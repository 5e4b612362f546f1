"""Papers on signals and time series."""
