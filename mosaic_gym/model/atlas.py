"""The atlas: the map a model was trained on, known by heart.

It is a network with two halves. `locate` says where in the map a frame was taken, and `picture` what is seen from a
place. Between them lies an ordinary place, metres and a heading, so each half learns from poses that recordings hold,
without waiting for the other: inpainting networks, without that joint, learnt next to nothing from as many samples.

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
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.geometry.camera import carried

NEAR_M, FAR_M = 0.3, 28.0
"""Between these a ray feels its way; depths beyond are none of the map's."""
WALL_RAYS = 8
"""Rays to a view, for what stands around a place: a step away, a wall between two of them is met some centimetres
late."""
AROUND = (0.8, 0.9, 0.96, 1.0, 1.04)
"""Where the finer plane is looked up, in shares of the depth that a ray found: depths are known to some percent."""
SEARCH_COLUMNS = 16
"""Columns of a frame that searches compare."""
SEARCH_ROUNDS, SEARCH_TRIES, SEARCH_NARROWS = 4, 24, 0.5
"""How often it looks around, at how many places, and by what each round is narrower than the one before."""
SEARCH_M, SEARCH_RAD = 0.5, 0.15
"""How far around it looks at first (standard deviations): about as far as `locate` is mostly off."""
UNEXPLAINED = 0.5
"""A frame is recognised if its picture leaves at most this share of its variance unexplained."""
SETTLED = 0.03
"""A guess that leaves at most this share of the frames' variance unexplained is not searched around, only sharpened."""
SETTLE_FRAMES, SETTLE_TRIES, SETTLE_ROUNDS = 5, 48, 3
"""How many of several frames a search compares, at how many places, and how often it looks around."""
SETTLE_M, SETTLE_RAD = 0.3, 0.08
"""How far around a guess that search looks at first (standard deviations)."""
SHARPEN_ROUNDS, SHARPEN_LAST = 5, 3
"""Steps of Gauss and Newton after it, fewer if they get small; and how many more, with all columns of the frames."""
SHARPEN_M, SHARPEN_RAD = 0.02, 0.004
"""Moves by which derivatives are taken: about what a pixel shows. A tenth of that is a small step."""
DENT_M, DENT_RAD = 0.03, 0.004
"""How far around the sharpened place is looked once more (standard deviations)."""
FURTHEST_M, FURTHEST_RAD = 0.4, 0.12
"""No such step is longer: further away, derivatives say nothing."""
ODD = 0.2
"""Errors beyond this, in [-1, 1], count for less and less: they are things that the atlas draws wrong."""
GRAIN_M = 8.0
"""Beyond this, a pixel of floor or ceiling shows too much of it for its grain to be seen."""
GAIN = 8.0
"""Features are so many times what their planes hold: a cell is seen by few samples, and learns so much faster."""


@cache
def _offsets(tries: int, metres: float, radians: float, device: torch.device) -> Tensor:
    """`[tries, 3]`, the same ones always."""
    spread = torch.tensor([metres, metres, radians])
    return (torch.randn(tries, 3, generator=torch.Generator().manual_seed(0)) * spread).to(device)


@cache
def _all_around(views: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How far so many views are turned `[views]`, the rays in each `[rays]`, so many metres to the right at a depth of
    one, and where all of them are there `[views * rays, 2]`: metres to the right and ahead."""
    wide_rad = 2.0 * math.pi / views
    turned = torch.arange(views) * wide_rad
    aside_rad = ((torch.arange(WALL_RAYS) + 0.5) / WALL_RAYS - 0.5) * wide_rad
    angle = turned[:, None] + aside_rad
    ways = torch.stack([angle.sin(), angle.cos()], -1) / aside_rad.cos()[:, None]
    return turned.to(device), aside_rad.tan().to(device), ways.flatten(0, 1).to(device)


def _metres(log_depth: Tensor) -> Tensor:
    return log_depth.clamp(math.log(NEAR_M) - 1.0, math.log(FAR_M)).exp()


def _variance(frames: Tensor) -> Tensor:
    """Of each of some frames `[b, 3, H, w]`, its colours' own means left out."""
    return (frames - frames.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))


def _trust(error: Tensor, variance: Tensor) -> Tensor:
    """What pictures explain of the variance of frames `[b]`, by their mean squared errors; 0 if it is too little."""
    return torch.where(error <= UNEXPLAINED * variance, variance - error, 0.0)


class Atlas(ModelMixin, ConfigMixin):
    """Where a frame was taken, and what is seen from there.

    A place is (x, z, heading): metres and radians in the map's frame, heading 0 along z and growing towards x.

    Args:
        height, width: of the frames, pixels, multiples of 16.
        corner_m: (x, z), the least corner of the square that the map lies in; side_m: its side.
        coarse, fine: cells along a side of the two planes of features; features: of each of their cells.
        samples: depths at which a ray is asked on its way.
        hidden: width of the networks along a ray.
        floor_m, ceiling_m: how far below and above the camera they mostly are.
        strip: colours that a wall has between them, one above the other.
        ground: cells along a side of the pictures of floor and ceiling.
        cells: along a side of the board on which frames are located; headings: bins of a whole turn.
    """

    @register_to_config
    def __init__(
        self,
        height: int = 64,
        width: int = 64,
        corner_m: tuple[float, float] = (0.0, 0.0),
        side_m: float = 32.0,
        coarse: int = 64,
        fine: int = 560,
        features: int = 16,
        samples: int = 24,
        hidden: int = 320,
        cells: int = 32,
        headings: int = 24,
        floor_m: float = 1.28,
        ceiling_m: float = 2.72,
        strip: int = 128,
        ground: int = 448,
    ):
        super().__init__()
        self.coarse_plane = nn.Parameter(torch.randn(1, features, coarse, coarse) * 0.1 / GAIN)
        self.fine_plane = nn.Parameter(torch.randn(1, features, fine, fine) * 0.1 / GAIN)
        self.feel = nn.Sequential(
            nn.Linear(samples * features + 4, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.depth = nn.Linear(hidden, 1)
        self.draw = nn.Sequential(
            nn.Linear(hidden + len(AROUND) * features + 5, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, height * 3),
        )  # fmt: skip
        # Both begin at nothing: grain is added to what the networks along a ray say.
        self.paint = nn.Sequential(
            nn.Linear(len(AROUND) * features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, strip * 3),
        )  # fmt: skip
        nn.init.zeros_(self.paint[-1].weight)
        nn.init.zeros_(self.paint[-1].bias)
        self.light = nn.Linear(hidden, 2)
        self.ground_plane = nn.Parameter(torch.zeros(1, 6, ground, ground))
        widths = (32, 64, 128, 192)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for fewer, more in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.GroupNorm(8, fewer), nn.SiLU(), nn.Conv2d(fewer, more, 4, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Flatten()]
        self.recognise = nn.Sequential(
            *layers, nn.Linear(widths[-1] * (height // 16) * (width // 16), 384), nn.SiLU(),
            nn.Linear(384, 3 * cells * cells + 2 * headings),
        )  # fmt: skip

    def check_map(self, size: tuple[int, int], places: Float[Tensor, "n 3"]) -> None:
        """Raises ValueError if frames of another size, or places off the map, are to be learnt or recognised."""
        mine = (self.config.height, self.config.width)
        if tuple(size) != mine:
            raise ValueError(
                f"the atlas draws frames of {mine}, recorded are {tuple(size)}; train one: mosaic-gym train atlas"
            )
        inside = (places[:, :2] - places.new_tensor(self.config.corner_m)) / self.config.side_m
        if not bool(((inside >= 0) & (inside <= 1)).all()):
            raise ValueError(
                "the recorded walk leaves the atlas's map; train one of it: mosaic-gym train atlas --data ..."
            )

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
        aside = (columns + 0.5 - image_from_camera[0, 2]) / image_from_camera[0, 0]
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
    def walls(
        self, places: Float[Tensor, "b 3"], image_from_camera: Float[Tensor, "3 3"]
    ) -> Float[Tensor, "b n 2"]:
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
        reach = torch.linspace(math.log(NEAR_M), math.log(FAR_M), config.samples, device=places.device).exp()
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
        edges = (torch.arange(config.height + 1, device=depth_m.device) - cy) / fy  # metres down at a depth of one
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
        rows = (torch.arange(config.height, device=cy.device) + 0.5 - cy) / fy
        depth_m = torch.where(rows > 0, config.floor_m, -config.ceiling_m) / rows
        near = (depth_m < GRAIN_M).nonzero()[:, 0]
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

    def forward(self, frames: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What frames in [-1, 1] say of their place.

        Returns:
            Logits of the board's cells `[b, n]`, offsets from their centres `[b, n, 2]` in cells, logits of the
            headings' bins `[b, m]`, and offsets from their middles `[b, m]` in bins.
        """
        said = self.recognise(frames.contiguous(memory_format=torch.channels_last)).float()
        n, m = self.config.cells**2, self.config.headings
        cell, offset, heading, turn = said.split((n, 2 * n, m, m), dim=1)
        return cell, offset.unflatten(1, (n, 2)), heading, turn

    @torch.no_grad()
    def locate(self, frames: Float[Tensor, "b 3 H W"], count: int = 4) -> Float[Tensor, "b count 3"]:
        """The likeliest places `[b, count, 3]` of frames in [-1, 1], best first: cells, each with the best heading."""
        cell, offset, heading, turn = self(frames)
        best = cell.topk(count, dim=1).indices  # [b, count]
        centre = torch.stack([best % self.config.cells, best // self.config.cells], -1) + 0.5
        shift = offset.gather(1, best[..., None].expand(-1, -1, 2))
        cell_m = self.config.side_m / self.config.cells
        xz = (centre + shift) * cell_m + frames.new_tensor(self.config.corner_m)
        bin_index = heading.argmax(1, keepdim=True)
        bin_rad = 2.0 * math.pi / self.config.headings
        yaw = (bin_index + 0.5 + turn.gather(1, bin_index)) * bin_rad
        return torch.cat([xz, yaw[:, None].expand(-1, count, 1)], -1)

    @torch.no_grad()
    def find(
        self,
        frames: Float[Tensor, "b 3 H W"],
        image_from_camera: Float[Tensor, "3 3"],
        hints: Float[Tensor, "b k 3"] | None = None,
        rounds: int = SEARCH_ROUNDS,
    ) -> Float[Tensor, "b 4"]:
        """Where frames in [-1, 1] were taken, by comparing them with pictures: (x, z, heading, trust) `[b, 4]`.

        The guesses of `locate`, and the hints, are drawn in some columns, and the likest goes on; each round tries
        places around it, nearer ones every time.

        Args:
            image_from_camera: `[3, 3]`, K in pixels.
            hints: `[b, k, 3]`, further guesses.
            rounds: 0 takes the likest guess as it is.

        Returns:
            Trust is what the picture explains of the frame's variance, in squared units of [-1, 1]: much for a view of
            many things, and 0 for a blank wall, which could be any, and for a frame that is not of this map.
        """
        tried = self.locate(frames)
        if hints is not None:
            tried = torch.cat([tried, hints], dim=1)
        columns = self._searched_columns(frames.device)
        shown = frames[..., columns]
        best, error = self._likest(tried, shown, image_from_camera, columns)
        for index in range(rounds):
            around = _offsets(SEARCH_TRIES, SEARCH_M, SEARCH_RAD, frames.device) * (SEARCH_NARROWS**index)
            tried = torch.cat([best[:, None], best[:, None] + around], 1)
            best, error = self._likest(tried, shown, image_from_camera, columns)
        variance = _variance(shown)
        trust = _trust(error, variance)
        return torch.cat([best, trust[:, None]], -1)

    @torch.no_grad()
    def compare(
        self, frames: Float[Tensor, "b 3 H W"], places: Float[Tensor, "b 3"], image_from_camera: Float[Tensor, "3 3"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """How frames in [-1, 1] look like the map from places: trust `[b]`, as `find` tells it, and mean squared errors
        `[b]` of the pictures."""
        columns = self._searched_columns(frames.device)
        shown = frames[..., columns]
        _, error = self._likest(places[:, None], shown, image_from_camera, columns)
        return _trust(error, _variance(shown)), error

    def _likest(
        self, tried: Tensor, shown: Tensor, image_from_camera: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of places tried `[b, k, 3]` that whose picture is most like `[b, 3, H, w]`, and its mean squared error."""
        b, k = tried.shape[:2]
        pictures, _ = self.picture(tried.flatten(0, 1), image_from_camera, columns)
        pictures = pictures.clamp(-1.0, 1.0).unflatten(0, (b, k))
        error = (pictures - shown[:, None]).square().mean((2, 3, 4))
        least = error.min(1)
        return tried[torch.arange(b, device=tried.device), least.indices], least.values

    def _searched_columns(self, device: torch.device) -> Tensor:
        step = max(1, self.config.width // SEARCH_COLUMNS)
        return torch.arange(step // 2, self.config.width, step, device=device)

    @torch.no_grad()
    def settle(
        self,
        frames: Float[Tensor, "n 3 H W"],
        here: Float[Tensor, "n 3"],
        guesses: Float[Tensor, "m 3"],
        image_from_camera: Float[Tensor, "3 3"],
    ) -> Float[Tensor, " 4"]:
        """Where the last of several frames was taken, by all of them at once: (x, z, heading, trust) `[4]`.

        How they were taken from one another is known, so one level motion leads from there to the map. Many frames
        leave little doubt where one leaves much, and tell the motion far more finely. The likest guess is searched
        around, unless it is good already, and sharpened by Gauss and Newton's method, damped (Levenberg 1944).

        Args:
            frames: `[n, 3, H, W]` in [-1, 1].
            here: `[n, 3]`, their places in a frame of their own.
            guesses: `[m, 3]`, places of the last on the map, at least one.
            image_from_camera: `[3, 3]`, K in pixels.

        Returns:
            Trust is the sum of what `find` would say of each frame there, so the more of them agree, the more it is.
        """
        searched = self._searched_columns(frames.device)

        def misfit(tried: Tensor, frames_at: slice | Tensor, columns: Tensor) -> Tensor:
            """Pictures from `[t, 3]` places of the last frame, less what was seen: `[t, f, 3, H, w]`."""
            places = carried(here[frames_at][None], here[-1].expand(len(tried), 1, 3), tried[:, None])
            pictures, _ = self.picture(places.flatten(0, 1), image_from_camera, columns)
            return pictures.clamp(-1.0, 1.0).unflatten(0, places.shape[:2]) - frames[frames_at][..., columns]

        def likest(tried: Tensor) -> Tensor:
            error = misfit(tried, some, searched).square().mean((2, 3, 4))
            return tried[int(error.clamp_max(0.25).mean(1).argmin())]  # one frame that fits nowhere decides nothing

        shown = frames[..., searched]
        variance = _variance(shown)
        some = torch.linspace(0, len(frames) - 1, min(len(frames), SETTLE_FRAMES), device=frames.device).round().long()
        best, every = likest(guesses), slice(None)
        if float(misfit(best[None], every, searched).square().mean()) > SETTLED * float(variance.mean()):
            for index in range(SETTLE_ROUNDS):
                around = _offsets(SETTLE_TRIES, SETTLE_M, SETTLE_RAD, frames.device) * SEARCH_NARROWS**index
                best = likest(torch.cat([best[None], best + around]))
        best = self._sharpened(best, lambda tried: misfit(tried, every, searched), SHARPEN_ROUNDS)
        # Edges that jump from pixel to pixel leave dents about as wide as a pixel, which derivatives stay in.
        best = likest(torch.cat([best[None], best + _offsets(SETTLE_TRIES, DENT_M, DENT_RAD, frames.device)]))
        whole = torch.arange(self.config.width, device=frames.device)
        best = self._sharpened(best, lambda tried: misfit(tried, every, whole), SHARPEN_LAST)
        error = misfit(best[None], every, searched)[0].square().mean((1, 2, 3))
        trust = _trust(error, variance).sum()
        return torch.cat([best, trust[None]])

    @staticmethod
    def _sharpened(place: Tensor, misfit: Callable[[Tensor], Tensor], rounds: int) -> Tensor:
        """A place `[3]` after at most so many damped steps of Gauss and Newton that lessen the misfit of `[t, 3]`."""
        moves = place.new_tensor([SHARPEN_M, SHARPEN_M, SHARPEN_RAD])
        furthest = place.new_tensor([FURTHEST_M, FURTHEST_M, FURTHEST_RAD])
        damping = 0.01
        off = misfit(place[None])
        for _ in range(rounds):
            errors = torch.cat([off, misfit(place + moves.diag())]).flatten(1).double()
            slopes = (errors[1:] - errors[0]) / moves[:, None]
            weighed = slopes / (1.0 + (errors[0] / ODD).square())
            normal = weighed @ slopes.T
            normal = normal + damping * normal.diagonal().diag() + 1e-9 * torch.eye(3).to(normal)
            step = torch.linalg.solve(normal, -weighed @ errors[0]).to(place.dtype).clamp(-furthest, furthest)
            tried = torch.stack([place, place + step, place + 0.3 * step])
            misfits = torch.cat([off, misfit(tried[1:])])
            taken = int(misfits.square().clamp_max(0.25).flatten(1).mean(1).argmin())
            damping = damping * 10.0 if taken == 0 else damping * 0.3
            place, off = tried[taken], misfits[taken : taken + 1]
            if taken == 1 and bool((step.abs() < 0.1 * moves).all()):
                break
        return place

    def targets(self, places: Float[Tensor, "b 3"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `forward` should say of frames from these places: cell, offset `[b, 2]`, heading's bin, and offset."""
        cells, headings = self.config.cells, self.config.headings
        board = (places[:, :2] - places.new_tensor(self.config.corner_m)) * (cells / self.config.side_m)
        corner = board.floor().clamp(0, cells - 1)
        turns = places[:, 2].remainder(2.0 * math.pi) * (headings / (2.0 * math.pi))
        bin_index = turns.floor().clamp(0, headings - 1)
        cell = corner[:, 1] * cells + corner[:, 0]
        return cell.long(), board - corner - 0.5, bin_index.long(), turns - bin_index - 0.5
