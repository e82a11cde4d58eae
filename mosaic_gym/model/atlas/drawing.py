"""The atlas's half that draws: what is seen from a place, and what stands around it.

A picture is drawn column by column. A column's viewing ray feels its way through a plane of learned features, finds
how deep it goes, looks the place where it ends up in a finer plane, and says the column's colours. That is a light
field over a floor plan (Sitzmann et al., *Light Field Networks*, arXiv 2106.02634; the planes are those of Chan et
al., EG3D, arXiv 2112.07945, one of their three): a level camera is assumed, K is not.

What a network along a ray cannot say is grain. So a wall also has a strip of colours from floor to ceiling, said by
the place alone and laid into the picture by its depth, and floor and ceiling each a picture of their own, seen from
above: texture maps (Catmull 1974), filtered by summed areas (Crow 1984).
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NEAR_M, FAR_M = 0.3, 28.0
"""Between these a ray feels its way; depths beyond are none of the map's."""
WALL_RAYS = 8
"""Rays to a view, for what stands around a place: a step away, a wall between two of them is met some centimetres
late."""
AROUND = (0.8, 0.9, 0.96, 1.0, 1.04)
"""Where the finer plane is looked up, in shares of the depth that a ray found: depths are known to some percent."""
GRAIN_M = 8.0
"""Beyond this, a pixel of floor or ceiling shows too much of it for its grain to be seen."""
GAIN = 8.0
"""Features are so many times what their planes hold: a cell is seen by few samples, and learns so much faster."""


@cache
def _all_around(views: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How far so many views are turned `[views]`, the rays in each `[rays]`, so many metres to the right at a depth of
    one, and where all of them are there `[views * rays, 2]`: metres to the right and ahead."""
    wide_rad = 2.0 * math.pi / views
    turned = torch.arange(views, dtype=torch.float32, device="cpu") * wide_rad
    aside_rad = ((torch.arange(WALL_RAYS, dtype=torch.float32, device="cpu") + 0.5) / WALL_RAYS - 0.5) * wide_rad
    angle = turned[:, None] + aside_rad
    ways = torch.stack([angle.sin(), angle.cos()], -1) / aside_rad.cos()[:, None]
    return turned.to(device), aside_rad.tan().to(device), ways.flatten(0, 1).to(device)


def _metres(log_depth: Tensor) -> Tensor:
    return log_depth.clamp(math.log(NEAR_M) - 1.0, math.log(FAR_M)).exp()


class Drawing:
    """Pictures and walls from places (x, z, heading); the attributes are `Atlas`'s."""

    def picture(
        self, places: Float[Tensor, "b 3"], image_from_camera: Float[Tensor, "3 3"], columns: Tensor | None = None
    ) -> tuple[Float[Tensor, "b 3 H w"], Float[Tensor, "b w"]]:
        """What is seen from places: frames `[b, 3, H, w]`, nominally in [-1, 1], and each column's log depth `[b, w]`.

        Args:
            places: `[b, 3]`, (x, z, heading), metres and radians.
            image_from_camera: `[3, 3]`, K in pixels, here or on the CPU; the camera is level.
            columns: indices `[w]` of the columns to draw; None for all.
        """
        config = self.config
        columns = torch.arange(config.width, device=places.device) if columns is None else columns
        # Metres to the right at a depth of one.
        aside = (columns.float() + 0.5 - image_from_camera[0, 2]) / image_from_camera[0, 0]
        per_metre, ray, felt, log_depth = self._feel_along(places, aside)
        depth_m = _metres(log_depth)
        ends = depth_m[..., None] * depth_m.new_tensor(AROUND)
        at_its_end = self._look_up(self.fine_plane, places[:, None, None, :2] + per_metre[:, :, None] * ends[..., None])
        colours = self.draw(torch.cat([felt, at_its_end.type_as(felt), log_depth[..., None], ray], -1))
        colours = colours.float().unflatten(-1, (3, config.height))  # [b, w, 3, H]
        light = 1.0 + self.light(felt).float()  # [b, w, 2]
        wall, seen = self._wall(self.paint(at_its_end), depth_m, image_from_camera)
        colours = colours + light[..., :1, None] * wall
        ground = self._ground(places, per_metre, image_from_camera)
        colours = colours + (light[..., 1:] * (1.0 - seen))[:, :, None] * ground
        return colours.permute(0, 2, 3, 1), log_depth

    @torch.no_grad()
    def walls(self, places: Float[Tensor, "b 3"], image_from_camera: Float[Tensor, "3 3"]) -> Float[Tensor, "b n 2"]:
        """Where rays all around places end: metres to the right of each place and ahead of it, `[b, n, 2]`.

        Args:
            places: `[b, 3]`, (x, z, heading), metres and radians.
            image_from_camera: `[3, 3]`, K in pixels: no ray leaves the view that it was learnt in, which is turned.
        """
        middle = image_from_camera[0, 2]
        reach = float(torch.minimum(middle, self.config.width - middle) / image_from_camera[0, 0])
        turned, aside, ways = _all_around(math.ceil(math.pi / math.atan(reach)), places.device)
        headings = places[:, None, 2] + turned
        views = torch.cat([places[:, None, :2].expand(-1, len(turned), -1), headings[..., None]], -1).flatten(0, 1)
        depth_m = _metres(self._feel_along(views, aside)[3]).view(len(places), -1, 1)
        return depth_m * ways

    def _feel_along(self, places: Tensor, aside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rays from places `[b, 3]`, so many metres to the right `[w]` at a depth of one.

        Returns:
            Their ways for each metre of depth `[b, w, 2]`, what the networks are told of their directions `[b, w, 4]`,
            what they feel `[b, w, hidden]`, and the logs of the depths at which they end `[b, w]`.
        """
        config = self.config
        b, w = len(places), len(aside)
        sine, cosine = places[:, 2].sin(), places[:, 2].cos()
        ahead, right = torch.stack([sine, cosine], -1), torch.stack([cosine, -sine], -1)
        per_metre = ahead[:, None] + aside[None, :, None] * right[:, None]  # [b, w, 2]
        near, far, here = math.log(NEAR_M), math.log(FAR_M), places.device
        reach = torch.linspace(near, far, config.samples, dtype=torch.float32, device=here).exp()
        on_the_way = places[:, None, None, :2] + per_metre[:, :, None] * reach[:, None]
        turned = aside[None, :, None].expand(b, w, 1)
        ray = torch.cat([F.normalize(per_metre, dim=-1), turned, turned.square()], -1)
        felt = self.feel(torch.cat([self._look_up(self.coarse_plane, on_the_way), ray], -1))
        return per_metre, ray, felt, self.depth(felt)[..., 0].float() + 1.0

    def _wall(self, painted: Tensor, depth_m: Tensor, image_from_camera: Tensor) -> tuple[Tensor, Tensor]:
        """Strips of colour `[b, w, 3 * strip]`, ceiling first, as walls at depths `[b, w]` show them.

        Returns:
            Colours `[b, w, 3, H]`, each pixel's mean over what it shows of the strip, and how much of the pixel that
            is, `[b, w, H]`.
        """
        config, (fy, cy) = self.config, (image_from_camera[1, 1], image_from_camera[1, 2])
        above = painted.float().unflatten(-1, (3, config.strip)).cumsum(-1)
        above = F.pad(above, (1, 0))  # [b, w, 3, strip + 1]: all the colour above an edge
        rows = torch.arange(config.height + 1, dtype=torch.float32, device=depth_m.device)
        edges = (rows - cy) / fy  # metres down at a depth of one
        at = (edges * depth_m[..., None] + config.ceiling_m) * (config.strip / (config.ceiling_m + config.floor_m))
        inside = at.clamp(0.0, config.strip)
        below = inside.floor().clamp_max(config.strip - 1)
        index = below.long()[:, :, None].expand(-1, -1, 3, -1)
        upper, lower = above.gather(-1, index), above.gather(-1, index + 1)
        summed = upper + (inside - below)[:, :, None] * (lower - upper)  # [b, w, 3, H + 1]
        height = at.diff(dim=-1)
        return summed.diff(dim=-1) / height[:, :, None], inside.diff(dim=-1) / height

    def _ground(self, places: Tensor, per_metre: Tensor, image_from_camera: Tensor) -> Tensor:
        """Floor and ceiling `[b, w, 3, H]` from places `[b, 3]` along rays `[b, w, 2]`; nothing further away than
        grain is seen."""
        config, (fy, cy) = self.config, (image_from_camera[1, 1], image_from_camera[1, 2])
        # Where K is: if that is the CPU, an accelerator need not be waited for to count the rows.
        rows = (torch.arange(config.height, dtype=torch.float32, device=cy.device) + 0.5 - cy) / fy
        depth_m = torch.where(rows > 0, rows.new_tensor(config.floor_m), rows.new_tensor(-config.ceiling_m)) / rows
        near = (depth_m.abs() < GRAIN_M).nonzero()[:, 0]  # a row level with the eye has none
        near, is_floor, depth_m = (each.to(places.device) for each in (near, rows[near] > 0, depth_m[near]))
        points = places[:, None, None, :2] + per_metre[:, :, None] * depth_m[:, None]  # [b, w, k, 2]
        both = self._look_up(self.ground_plane, points).unflatten(-1, (-1, 2, 3))
        chosen = torch.where(is_floor[:, None], both[..., 0, :], both[..., 1, :])
        fading = (1.0 - depth_m / GRAIN_M)[:, None]
        shown = chosen.new_zeros(*per_metre.shape[:2], 3, config.height)
        return shown.index_copy(3, near, (chosen * fading).transpose(2, 3))

    def _look_up(self, plane: Tensor, points_m: Tensor) -> Tensor:
        """Features of points `[b, w, k, 2]`, `[b, w, k * c]`, bilinear."""
        corner = points_m.new_tensor(self.config.corner_m)
        where = (points_m - corner) * (2.0 / self.config.side_m) - 1.0
        b, w, k = points_m.shape[:3]
        found = F.grid_sample(plane, where.view(1, b * w, k, 2), padding_mode="border", align_corners=False)
        return GAIN * found[0].permute(1, 2, 0).reshape(b, w, -1)
