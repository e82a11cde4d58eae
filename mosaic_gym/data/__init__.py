"""Recorded episodes: how they are stored on disk and read back. The code that records them is in `worlds`."""
