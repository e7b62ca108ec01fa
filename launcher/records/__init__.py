"""What ranks and launchers leave in the run directory, for whoever reads it."""
