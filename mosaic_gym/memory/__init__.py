"""What has been seen, kept as patches in 3D, and laid back into later views."""
