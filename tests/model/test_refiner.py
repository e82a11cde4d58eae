"""The refiner: exact where warps are certain, trained where they are not; sizes that do not fit are named."""

import pytest
import torch

from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from tests.tiny import tiny_model


def inputs(height=16, width=24, warp_uncertainty=1.0, memory_weight=0.0):
    generator = torch.Generator().manual_seed(0)
    shown = [torch.rand(2, 4, 3, height, width, generator=generator) for _ in range(3)]
    return *shown, torch.full((2, 4, height, width), warp_uncertainty), torch.full((2, 4, height, width), memory_weight)


def scribbling(seed=0) -> Refiner:
    torch.manual_seed(seed)
    network = Refiner(widths=(8, 8, 8))
    for module in network.modules():  # those that begin at zero, too
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.2)
    return network


def test_it_begins_by_showing_what_is_believed():
    believed, *rest = inputs()
    assert (Refiner(widths=(8, 8, 8))(believed, *rest) - believed).abs().max() < 0.1


def test_it_chooses_between_belief_memory_and_map():
    believed, warped_frames, pictures, *planes = inputs()
    for chosen, shown in enumerate((believed, warped_frames, pictures)):
        network = Refiner(widths=(8, 8, 8))
        bias = torch.zeros(4, 6, 4)  # frames, colours and choices, the pixels that were shuffled together
        bias[:, 3 + chosen] = 8.0
        network.head.bias.data.copy_(bias.flatten())
        assert (network(believed, warped_frames, pictures, *planes) - shown).abs().max() < 1e-3


def test_what_is_relied_on_stays_as_it_is_whatever_was_believed():
    for warp_uncertainty in (0.0, 1.0):
        believed, warped_frames, *rest = inputs(warp_uncertainty=warp_uncertainty, memory_weight=1.0)
        assert torch.equal(scribbling()(believed, warped_frames, *rest), warped_frames)


def test_without_doubt_it_is_what_memory_and_map_let_expect_and_with_less_it_draws_less():
    believed, warped_frames, pictures, *planes = inputs(warp_uncertainty=0.0, memory_weight=0.25)
    expected = 0.25 * warped_frames + 0.75 * pictures
    assert torch.allclose(scribbling()(believed, warped_frames, pictures, *planes), expected)

    def drawn(warp_uncertainty: float, memory_weight: float) -> torch.Tensor:
        """How far it goes from what is expected."""
        shown = scribbling()(*inputs(warp_uncertainty=warp_uncertainty, memory_weight=memory_weight))
        return (shown - torch.lerp(pictures, warped_frames, memory_weight)).abs().mean()

    assert drawn(1.0, 0.0) > 1.5 * drawn(0.5, 0.0) > 3.0 * drawn(0.5, 0.8) > 0


def test_a_body_at_rest_sees_a_world_at_rest():
    model = tiny_model()
    torch.nn.init.zeros_(model.depth.head[1].weight)  # one depth everywhere: the random one is all edges
    # A complete basis: what the codec holds is the picture itself.
    model.codec = LinearCodec(channels=768)
    torch.manual_seed(0)
    model.transformer = type(model.transformer)(
        patch_size=(1, 1, 1), in_channels=768, out_channels=768, num_attention_heads=1, attention_head_dim=32,
        num_layers=1, ffn_dim=32, text_dim=16, freq_dim=16, insertion="split", causal=True,
    )  # fmt: skip
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.5)
    world = MosaicWorld(model)
    state, first = world.start(Start(seed=0))
    for _ in range(3):
        (state,), (view,) = world.step([state], torch.tensor([ACTIONS["noop"]]).numpy())
    assert abs(view.frames.astype(int) - first.frames.astype(int)).max() <= 1


def test_a_complete_codec_loses_nothing():
    codec = LinearCodec(channels=768)
    frames = torch.rand(30, 4, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codec.fit(frames)
    assert (codec.decode(codec.encode(frames[:4])) - frames[:4]).abs().max() < 1e-3


def test_every_weight_is_trained():
    network = scribbling()
    network(*inputs(warp_uncertainty=0.5)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_size_it_cannot_halve_is_named():
    with pytest.raises(ValueError, match="sizes divisible by 8; got 12x24"):
        scribbling()(*inputs(height=12))


def test_what_grows_in_training_does_not_shut_it():
    """Seen once: the sum of residuals wandered to -600, every unit was shut, and the network said one number."""
    believed, *rest = inputs()
    network = scribbling()
    with torch.no_grad():
        network.fine_up[-1].second.bias -= 600.0
    strokes = network(believed, *rest) - believed
    assert strokes.std() > 1e-2
    (gradient,) = torch.autograd.grad(strokes.square().sum(), network.stem.weight)
    assert gradient.abs().max() > 0
