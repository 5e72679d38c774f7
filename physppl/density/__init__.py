"""Model and data as a density over one unconstrained vector: its mode, curvature and moments."""
