"""A run of `train world` at tiny size, and the parts that it needs."""

from pathlib import Path

from mosaic_gym.training import atlas, codec, depth, reward_heads, world


def train_parts(data: Path, folder: Path) -> Path:
    """Trains codec, depth estimator, reward heads and atlas for a step or two, in folders of these names."""
    codec.train(codec.Config(data=data, out=folder / "codec", channels=24, steps=40))
    depth.train(depth.Config(data=data, out=folder / "depth", steps=2, batch=2, widths=(8, 8, 16, 16)))
    reward_heads.train(reward_heads.Config(data=data, out=folder / "reward_heads", steps=2, batch=8, widths=(8, 8)))
    atlas.train(atlas.Config(data=data, out=folder / "atlas", minutes=None, steps=2, batch=4))
    return folder


def tiny_world_config(data: Path, parts: Path, out: Path, steps: int) -> world.Config:
    """A config whose step takes a tenth of a second."""
    return world.Config(
        data=data, codec=parts / "codec", depth=parts / "depth" / "weights",
        reward_heads=parts / "reward_heads" / "weights", atlas=parts / "atlas" / "weights", out=out, steps=steps,
        batch=2, layers=1, heads=1, ffn=32, rollout=0.5,
    )  # fmt: skip
