"""Cameras, projection and control: the ground floor."""
