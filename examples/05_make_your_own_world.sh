#!/bin/sh
# Record your own data and train a world on it: a small one, in about a quarter of an hour on two cores.
# For a full one, leave out the numbers: `make record train`.
set -e
out=${1:-out/my_world}
mosaic-gym record --out "$out/data" --scenario health_gathering_supreme --episodes 20 --steps-per-episode 40
mosaic-gym train codec --data "$out/data" --out "$out/codec"
mosaic-gym train depth --data "$out/data" --out "$out/depth" --minutes 2
mosaic-gym train reward-heads --data "$out/data" --out "$out/reward_heads" --minutes 1
mosaic-gym train atlas --data "$out/data" --out "$out/atlas" --minutes 3
mosaic-gym train world --data "$out/data" --codec "$out/codec" --depth "$out/depth/weights" \
    --reward-heads "$out/reward_heads/weights" --atlas "$out/atlas/weights" --out "$out/world" --minutes 5
mosaic-gym play --checkpoint "$out/world/weights" --scenario health_gathering_supreme --compare
