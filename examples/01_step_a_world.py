"""Step the learned world with random actions, and print what a step returns.

python examples/01_step_a_world.py
"""

import gymnasium as gym

import mosaic_gym

env = gym.make("MosaicWorld-v0")
env.action_space.seed(0)
names = list(mosaic_gym.ACTIONS)

image, info = env.reset(seed=0)
print(f"an image {image.shape} {image.dtype}; {len(names)} actions: {', '.join(names)}")

for _ in range(16):
    action = env.action_space.sample()
    image, reward, terminated, truncated, info = env.step(action)
    x_m, _, z_m = (row[3] for row in info["pose"][:3])
    print(
        f"{names[action]:>18}: at ({x_m:+.2f}, {z_m:+.2f}) m, reward {reward:.0f}, "
        f"{info['coverage']:4.0%} of the view retrieved from {info['memory_keyframes']} keyframes"
    )
env.close()
