"""Recorded episodes: how they are stored on disk and read back. What drives a simulator is in `worlds`."""
