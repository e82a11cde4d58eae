"""The atlas's half that finds: where in the map frames were taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import carried

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


@cache
def _offsets(tries: int, metres: float, radians: float, device: torch.device) -> Tensor:
    """`[tries, 3]`, the same ones always."""
    spread = torch.tensor([metres, metres, radians], dtype=torch.float32, device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    return (torch.randn(tries, 3, generator=generator, dtype=torch.float32, device="cpu") * spread).to(device)


def _variance(frames: Tensor) -> Tensor:
    """Of each of some frames `[b, 3, H, w]`, its colours' own means left out."""
    return (frames - frames.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))


def _trust(error: Tensor, variance: Tensor) -> Tensor:
    """What pictures explain of the variance of frames `[b]`, by their mean squared errors; 0 if it is too little."""
    return torch.where(error <= UNEXPLAINED * variance, variance - error, 0.0)


class Finding:
    """Places (x, z, heading) of frames: a first guess, and what comparing pictures makes of it; the attributes are
    `Atlas`'s."""

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
        centre = torch.stack([best % self.config.cells, best // self.config.cells], -1).float() + 0.5
        shift = offset.gather(1, best[..., None].expand(-1, -1, 2))
        cell_m = self.config.side_m / self.config.cells
        xz = (centre + shift) * cell_m + frames.new_tensor(self.config.corner_m)
        bin_index = heading.argmax(1, keepdim=True)
        bin_rad = 2.0 * math.pi / self.config.headings
        yaw = (bin_index.float() + 0.5 + turn.gather(1, bin_index)) * bin_rad
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
        count = min(len(frames), SETTLE_FRAMES)
        some = torch.linspace(0, len(frames) - 1, count, dtype=torch.float32, device=frames.device).round().long()
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
