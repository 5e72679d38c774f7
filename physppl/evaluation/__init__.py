"""Posteriors against data, against the truth, and against one another."""
