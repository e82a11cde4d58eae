"""Spatial memory: observed and generated frames are lifted into 3D patches and warped into later views."""
