"""What was recorded: spaces, transitions, trajectories, and the readers and checks of them."""
