"""Whether a world is faithful to given frames, plausible and sharp in invented places, and consistent with itself."""
