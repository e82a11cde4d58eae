"""How the learned world reads its memory and writes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.keyframe import FROM_ATLAS, Keyframe, lift, median_per_cell
from mosaic_gym.memory.mosaic import MosaicMemory, Retrieved, retrieve
from mosaic_gym.memory.obstacles import obstacles_near
from mosaic_gym.memory.whereabouts import is_known, is_supposed, recognised
from mosaic_gym.model.depth import align_scale
from mosaic_gym.model.device import out_of_memory_guard
from mosaic_gym.worlds.state import WorldState


class Remembering:
    """The half of `MosaicWorld` that recalls and remembers."""

    def covered(self, state: WorldState, poses: Sequence[Pose]) -> np.ndarray:
        """Which pixels memory has something to say about, bool `[4, H, W]`, in a next view from four given poses."""
        return self.retrieve([state], self._cameras([poses])).pixels_covered[0].cpu().numpy()

    @out_of_memory_guard("what memory recalls")
    def retrieve(
        self, states: Sequence[WorldState], cameras: Tensor, pictures: Sequence[Tensor | None] | None = None
    ) -> Retrieved:
        """What the states' memories give for their next cameras `[b, t, 4, 4, 4]`, metres: `b * t` views.

        Args:
            pictures: of the views, by heart; see `pictures`.
        """
        settings = self.model.settings
        t = cameras.shape[1]
        memories = [kept for kept in map(self._recallable, states) for _ in range(t)]
        where = cameras.flatten(0, 1), self.k, self.model.codec, self._latent_shape
        supposed = [each for each in (is_supposed(state.memory.keyframes) for state in states) for _ in range(t)]
        budgets = settings.max_sources, settings.max_patches, self._patch
        return retrieve(memories, *where, *budgets, pictures, supposed)

    def _recallable(self, state: WorldState) -> Sequence[Keyframe]:
        """What a state remembers, without what was dreamt where its place on the map was known.

        That was drawn by heart, and is better drawn anew: of the same map, from where it is seen now. Measured on 14
        ways out and back, memory and atlas alone, places less exact than now: 24.2 dB with it recalled, 27.3 without.
        """
        keyframes = state.memory.keyframes
        # Nothing draws them anew once no true frame is left to know the place by, as when one frame is all it keeps.
        if self.atlas is None or not any(keyframe.trust > 0 for keyframe in keyframes):
            return keyframes
        return [keyframe for keyframe in keyframes if not keyframe.is_from_atlas]

    @out_of_memory_guard("the atlas")
    @torch.no_grad()
    def pictures(self, states: Sequence[WorldState], cameras: Tensor) -> list[Tensor | None]:
        """The states' next views from cameras `[b, t, 4, 4, 4]`, as the atlas knows the map by heart: `b * t` of them.

        Each is `[4, 3, H, W]` in [-1, 1]; None where the place on the map is neither known nor supposed.
        """
        b, t = cameras.shape[:2]
        if self.atlas is None:
            return [None] * (b * t)
        known = recognised([state.memory.keyframes for state in states], cameras.flatten(1, 2))
        places = [each for each in known if each is not None]  # [t * 4, 3] each
        if not places:
            return [None] * (b * t)
        shown = self.atlas.picture(torch.cat(places), self.k)[0].clamp(-1.0, 1.0)
        views = iter(shown.unflatten(0, (-1, FRAMES_PER_STEP)))
        return [None if each is None else next(views) for each in known for _ in range(t)]

    @out_of_memory_guard("what stands in the way")
    def obstacles(self, states: Sequence[WorldState]) -> list[np.ndarray]:
        """Places (x, z) `[n, 2]`, metres, that each state's body cannot pass.

        They are what memory has lifted, and the map's walls all around where the place on it is known: a body that
        walks backwards meets what it has never seen. Where it is only supposed, walls might stand in what was seen.
        """
        memories, poses = [state.memory.keyframes for state in states], [state.pose for state in states]
        bodies = np.stack([pose.world_from_camera for pose in poses])
        known, walls_m = [], torch.zeros(0, 0, 2)
        if self.atlas is not None:
            places = recognised(memories, torch.as_tensor(bodies, dtype=torch.float32, device=self.device)[:, None])
            known = [i for i, keyframes in enumerate(memories) if is_known(keyframes)]
        if known:  # asked first, and read last: an accelerator is waited for once
            k = torch.as_tensor(self.image_from_camera)  # on the CPU, where it is read
            walls_m = self.atlas.walls(torch.cat([places[i] for i in known]), k)
        lifted = obstacles_near(memories, bodies[:, :3, 3], [self.control.reach_m(pose) for pose in poses])
        for i, wall_m in zip(known, walls_m.cpu().double().numpy(), strict=True):
            right, _, ahead, eye_m = bodies[i, :3].T
            around_m = eye_m + wall_m @ np.stack([right, ahead])
            lifted[i] = np.concatenate([lifted[i], around_m[:, [0, 2]]])
        return lifted

    @out_of_memory_guard("the depth estimator")
    def _estimate_depth(self, frames: Tensor, retrieved: Retrieved) -> Tensor:
        """Depth `[b, t, H, W]` of the last of every four frames, metres, on the scale of what memory knows."""
        last = frames[:, :, -1].flatten(0, 1).clamp(-1, 1)
        depth_m = self.model.depth.estimate(last, self.k.expand(len(last), 3, 3))
        return align_scale(depth_m, retrieved.depth_m, self.model.depth.metric).unflatten(0, frames.shape[:2])

    @out_of_memory_guard("what memory keeps")
    def _remember(
        self, states: Sequence[WorldState], latents: Tensor, depth_m: Tensor, cameras: Tensor, retrieved: Retrieved
    ) -> list[list[MosaicMemory]]:
        """Every state's memory behind each of its new frames."""
        b, t = cameras.shape[:2]
        places = cameras.new_zeros(b, t, 4)
        if self.atlas is not None:
            known = recognised([state.memory.keyframes for state in states], cameras[:, :, -1])
            for i, place in enumerate(known):
                if place is not None:
                    places[i] = F.pad(place, (0, 1), value=FROM_ATLAS)
        # A patch is one generation further from a true frame than what it was made from.
        told = latents.flatten(0, 1), depth_m.flatten(0, 1), cameras.flatten(0, 1), retrieved.generation + 1.0
        steps = [state.step_index + 1 + k for state in states for k in range(t)]
        keyframes = iter(self.lift(*told, steps, places.flatten(0, 1)))
        remembered = []
        for state in states:
            memory, memories = state.memory, []
            for _ in range(t):
                memory = memory.update(next(keyframes))
                memories.append(memory)
            remembered.append(memories)
        return remembered

    @out_of_memory_guard("what memory keeps")
    def lift(
        self,
        latents: Tensor,
        depth_m: Tensor,
        cameras: Tensor,
        generation: Tensor,
        steps: Sequence[int],
        places: Tensor | None = None,
    ) -> list[Keyframe]:
        """Keyframes, their depth on the grid of the codec's stills; see `memory.keyframe.lift`."""
        k = self.k
        if self._image_cells != tuple(depth_m.shape[-2:]):
            k = rescale_intrinsics(k, tuple(depth_m.shape[-2:]), self._image_cells)
            depth_m = median_per_cell(depth_m, self._image_cells)
        return lift(latents, depth_m, cameras, k, generation, steps, places)
