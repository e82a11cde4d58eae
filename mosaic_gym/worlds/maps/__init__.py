"""Generated maps: rooms, corridors, doors and things drawn from a seed, as levels of the simulator."""
