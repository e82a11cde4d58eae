"""The transformer and what surrounds it: attention, sampler, codec, depth, text, checkpoints."""
