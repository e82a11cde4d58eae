"""Change memory, and see it in what the world generates (MosaicMem, arXiv 2603.17117, memory editing).

Writes one image, one row for each: the scene, then it with a part moved to the right, duplicated, removed; and two
scenes spliced, the second to the right of the first (street to street), and above it, seen by a camera that looks up
(sky city). The first column is the view at the start, the others turn to the right.

    python examples/06_edit_memory.py [out.png] [checkpoint]
"""

import sys

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import mosaic_gym
from mosaic_gym import editing

TURN = list(mosaic_gym.ACTIONS).index("turn_right")
checkpoint = sys.argv[2] if len(sys.argv) > 2 else "doom-tiny"
env = gym.make("MosaicWorld-v0", checkpoint=checkpoint).unwrapped


def look_around(memory=None, pose=None, seed=0):
    """The views of a start and of a turn to the right; from a memory, or from the start image of a seed."""
    env.reset(seed=seed, options=None if memory is None else {"memory": memory, "pose": pose})
    views = [env.view.frames[-1]]
    for _ in range(6):
        env.step(TURN)
        views.append(env.view.frames[-1])
    return views


rows = [look_around()]
env.reset(seed=0)
first, view = env.memory, env.view
height, width = view.depth_m.shape
box = (height // 4, width // 4, 3 * height // 4, 5 * width // 8)
part = editing.select_on_screen(first, box, view.world_from_camera[-1], view.image_from_camera, (height, width))
near = -0.4 * np.median(view.depth_m) * view.world_from_camera[-1][:3, 2]  # towards the camera
right = 0.5 * view.world_from_camera[-1][:3, 0]
pose = view.world_from_camera[-1]
rows.append(look_around(editing.move(first, part, near + right), pose))
rows.append(look_around(editing.duplicate(first, part, near), pose))
rows.append(look_around(editing.remove(first, part), pose))
env.reset(seed=1)
second = env.memory
rows.append(look_around(editing.splice_beside(first, second, "right"), pose))
up = np.eye(4)
up[1:3, 1:3] = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])  # 34 degrees
rows.append(look_around(editing.splice_beside(first, second, "above"), pose @ up))
env.close()
path = sys.argv[1] if len(sys.argv) > 1 else "edits.png"
iio.imwrite(path, np.concatenate([np.concatenate(row, axis=1) for row in rows]).repeat(2, 0).repeat(2, 1))
print(f"wrote {path}: scene, moved, duplicated, removed, spliced to the right, spliced above ({len(part)} patches)")
