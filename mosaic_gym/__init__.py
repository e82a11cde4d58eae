"""Mosaic Gym: environments whose transition function is a video model with spatial memory."""

__version__ = "0.1.0"
