"""What Gymnasium sees: the environment, its spaces, reset options and tasks."""
