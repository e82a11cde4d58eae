"""The World protocol and its members: the learned world and the true one."""
