"""Pretrained Wan pipelines as worlds: loading, codec, prompts, adapters and camera projections."""
