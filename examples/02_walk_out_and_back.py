"""Turn around once in the dream and compare the view with the one the walk began with.

With memory the room is still there when the camera comes back; without, it has become another.
Writes one picture: the outward views on top, the same headings again below.

    python examples/02_walk_out_and_back.py [out.png]
"""

import sys

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import mosaic_gym

names = list(mosaic_gym.ACTIONS)
TURNS = 9  # steps out; the same number leads back


def walk(memory: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Views on the way out and, in the same order, again on the way back."""
    env = gym.make("MosaicWorld-v0", memory=memory)
    image, _ = env.reset(seed=0)
    outward = [image]
    for _ in range(TURNS):
        outward.append(env.step(names.index("turn_right"))[0])
    homeward = [outward[-1]]
    for _ in range(TURNS):
        homeward.append(env.step(names.index("turn_left"))[0])
    env.close()
    return outward, homeward[::-1]


def psnr_db(seen: np.ndarray, again: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 images, decibels."""
    error = np.mean((seen.astype(float) - again.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


rows = []
for memory in (True, False):
    outward, homeward = walk(memory)
    rows += [np.concatenate(outward, axis=1), np.concatenate(homeward, axis=1)]
    print(f"memory {'on ' if memory else 'off'}: home again at {psnr_db(outward[0], homeward[0]):.1f} dB")
path = sys.argv[1] if len(sys.argv) > 1 else "out_and_back.png"
iio.imwrite(path, np.concatenate(rows, axis=0))
print(f"wrote {path}: with memory out and back, then without")
