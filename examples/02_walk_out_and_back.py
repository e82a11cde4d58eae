"""Walk out, turn around, walk home, turn around again: is the place still what it was?

Before the last turn, all that the first view showed lies behind the body. With memory it is there again at the end;
without, the body stands where it stood, and nothing of it is left. Prints how like the first view the last one is, and
writes one picture: every third view, with memory on top and without below.

    python examples/02_walk_out_and_back.py [out.png]
"""

import sys

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import mosaic_gym

names = list(mosaic_gym.ACTIONS)
LEG = ["forward"] * 4 + ["turn_right"] * 18  # four metres, and half a turn: the first leg leads out, the second home


def walk(memory: bool) -> tuple[list[np.ndarray], float]:
    """All views, and how far from its beginning the walk ended, metres."""
    env = gym.make("MosaicWorld-v0", memory=memory)
    image, info = env.reset(seed=7)  # a start with room ahead
    views, begun = [image], np.array(info["pose"])
    for name in LEG + LEG:
        image, _, _, _, info = env.step(names.index(name))
        views.append(image)
    env.close()
    return views, float(np.linalg.norm(np.array(info["pose"])[:3, 3] - begun[:3, 3]))


def psnr_db(seen: np.ndarray, again: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 images, decibels."""
    error = np.mean((seen.astype(float) - again.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


rows = []
for memory in (True, False):
    views, off_m = walk(memory)
    way = max(psnr_db(views[0], view) for view in views[len(LEG) - 9 : -9])  # a quarter turn or more from the first
    rows.append(np.concatenate([*views[:-1:3], views[-1]], axis=1))
    print(
        f"memory {'on ' if memory else 'off'}: home to {off_m:.2f} m, {psnr_db(views[0], views[-1]):.1f} dB like the "
        f"first view (on the way, looking elsewhere, {way:.1f} at most)"
    )
path = sys.argv[1] if len(sys.argv) > 1 else "out_and_back.png"
iio.imwrite(path, np.concatenate(rows, axis=0))
print(f"wrote {path}: every third view, with memory, then without")
