"""Time and operations of environment steps."""
