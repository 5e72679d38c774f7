"""Recorded data: spaces, transitions, trajectories, and their readers and checks."""
