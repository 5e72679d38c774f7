"""Posteriors, the results of fits, with their draws, summaries, checks and files."""
