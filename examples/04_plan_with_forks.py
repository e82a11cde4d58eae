"""Plan towards a goal image: fork the present, imagine futures, take the one that ends most like the goal.

python examples/04_plan_with_forks.py
"""

import gymnasium as gym
import numpy as np

from mosaic_gym import imagine

env = gym.make("MosaicWorld-v0", task="return", observation="dict", action_space="continuous").unwrapped
seen, _ = env.reset(seed=3)
goal = seen["goal"].astype(float)
rng = np.random.default_rng(0)

for step in range(4):
    # 1. Sixteen plans of four steps; imagined side by side from the present state, which stays as it is.
    plans = np.clip(rng.normal(0.0, 0.8, (16, 4, 3)), -1.0, 1.0)
    futures = imagine(env.world, env.state, plans)
    # 2. The plan whose last frame is most like the goal.
    last = futures["frames"][:, -1, -1].numpy().astype(float)
    error = ((last - goal) ** 2).mean((1, 2, 3))
    best = int(error.argmin())
    # 3. Its first step, for real.
    seen, reward, home, _, info = env.step(plans[best, 0].astype(np.float32))
    likeness_db = 10 * np.log10(255**2 / error[best])
    print(f"step {step + 1}: the best future is {likeness_db:.1f} dB like the goal; {reward:+.2f} m nearer")
    if home:
        print("home")
        break
env.close()
