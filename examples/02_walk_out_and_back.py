"""Walk out, turn around, walk back, turn around again: does the last view equal the first?

Before the last turn, everything in the first view is behind the camera. With memory, the last view shows it again;
without memory, the pose is the same and the view is not. Prints the PSNR between the first and the last view, and
writes one image: every third view, with memory in the top row and without in the bottom row.

    python examples/02_walk_out_and_back.py [out.png]
"""

import sys

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import mosaic_gym

names = list(mosaic_gym.ACTIONS)
LEG = ["forward"] * 4 + ["turn_right"] * 18  # four metres, then half a turn: once to walk out, once to walk back


def walk(memory: bool) -> tuple[list[np.ndarray], float]:
    """All views, and the distance between the first and the last camera, metres."""
    env = gym.make("MosaicWorld-v0", memory=memory)
    image, info = env.reset(seed=7)  # a start with space ahead
    views, first_pose = [image], np.array(info["pose"])
    for name in LEG + LEG:
        image, _, _, _, info = env.step(names.index(name))
        views.append(image)
    env.close()
    return views, float(np.linalg.norm(np.array(info["pose"])[:3, 3] - first_pose[:3, 3]))


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 images, decibels."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


rows = []
for memory in (True, False):
    views, error_m = walk(memory)
    on_way_db = max(psnr_db(views[0], view) for view in views[len(LEG) - 9 : -9])  # turned by a quarter turn or more
    rows.append(np.concatenate([*views[:-1:3], views[-1]], axis=1))
    print(
        f"memory {'on ' if memory else 'off'}: home to {error_m:.2f} m, {psnr_db(views[0], views[-1]):.1f} dB like the "
        f"first view (on the way, looking elsewhere, {on_way_db:.1f} at most)"
    )
path = sys.argv[1] if len(sys.argv) > 1 else "out_and_back.png"
iio.imwrite(path, np.concatenate(rows, axis=0))
print(f"wrote {path}: every third view, with memory, then without")
