"""The World protocol and its implementations: the learned world and the simulator."""
