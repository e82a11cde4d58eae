"""Cameras, projection and control: the lowest layer of the package."""
