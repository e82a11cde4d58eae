"""Benchmarks: one module for each `mosaic-gym evaluate` command, and the ground-truth paths that they share."""
