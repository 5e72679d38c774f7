"""The closed loop: systems, agents, episodes, and loops that learn."""
