"""What Gymnasium sees: the environment and its tasks."""
