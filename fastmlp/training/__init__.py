"""Training runs as a whole: settings, drivers, results."""
