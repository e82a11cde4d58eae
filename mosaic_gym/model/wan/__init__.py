"""Pretrained Wan pipelines as worlds: options, plan, loading, codec, prompts, adapters and camera projections."""
