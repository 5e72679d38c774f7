"""What every folder needs and what knows nothing of dynamics: errors, units, keys, algebra of Gaussians, files."""
