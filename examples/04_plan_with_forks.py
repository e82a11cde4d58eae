"""Plan towards a goal image: fork the state, imagine futures, choose the one that ends nearest to the goal.

python examples/04_plan_with_forks.py
"""

import gymnasium as gym
import numpy as np

from mosaic_gym import imagine

env = gym.make("MosaicWorld-v0", task="return", observation="dict", action_space="continuous").unwrapped
observation, _ = env.reset(seed=3)
goal = observation["goal"].astype(float)
rng = np.random.default_rng(0)

for step in range(4):
    # 1. Sixteen plans of four steps, imagined together from the present state, which does not change.
    plans = np.clip(rng.normal(0.0, 0.8, (16, 4, 3)), -1.0, 1.0)
    futures = imagine(env.world, env.state, plans)
    # 2. The plan whose last frame is most similar to the goal.
    last = futures["frames"][:, -1, -1].numpy().astype(float)
    error = ((last - goal) ** 2).mean((1, 2, 3))
    best = int(error.argmin())
    # 3. Its first step in the environment.
    _, reward, success, _, info = env.step(plans[best, 0].astype(np.float32))
    psnr_db = 10 * np.log10(255**2 / error[best])
    print(f"step {step + 1}: the best future is {psnr_db:.1f} dB from the goal; {reward:+.2f} m nearer")
    if success:
        print("home")
        break
env.close()
