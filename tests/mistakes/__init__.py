"""Wrong inputs of every kind, with what the library must say to them, and the same in plain NumPyro."""
