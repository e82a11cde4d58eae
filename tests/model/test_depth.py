"""The estimators behind one call, and the scale that memory gives them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    Dinov2Config,
    DPTImageProcessor,
    GLPNConfig,
    ViTImageProcessor,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
    pipeline,
)

from mosaic_gym import ACTIONS, Start
from mosaic_gym.model.depth import ConvDepth, HuggingFaceDepth, align_scale
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import save_depth, tiny_model

K = torch.tensor([[[32.0, 0.0, 24.0], [0.0, 25.6, 16.0], [0.0, 0.0, 1.0]]])


def test_the_shipped_estimator_is_told_its_camera():
    torch.manual_seed(0)
    model = ConvDepth(widths=(8, 8, 16)).eval()
    frames = torch.rand(2, 3, 32, 48) * 2 - 1
    depth_m = model.estimate(frames, K.expand(2, 3, 3))
    wider = K * torch.tensor([0.5, 1.0, 1.0])[:, None]
    assert depth_m.shape == (2, 32, 48) and (depth_m > 0).all()
    assert not torch.allclose(depth_m, model.estimate(frames, wider.expand(2, 3, 3)))
    with pytest.raises(ValueError, match="sizes divisible by 8"):
        model.estimate(torch.zeros(1, 3, 30, 48), K)


@pytest.mark.parametrize("inverse", [False, True])
def test_any_hugging_face_depth_model_fits_behind_the_same_call(tmp_path, inverse):
    estimator = HuggingFaceDepth(save_depth(tmp_path), inverse=inverse)
    depth_m = estimator.estimate(torch.rand(2, 3, 32, 48) * 2 - 1, K.expand(2, 3, 3))
    assert depth_m.shape == (2, 32, 48) and depth_m.isfinite().all() and (depth_m > 0).all()


def save_anything(folder, kind="metric"):
    """A Depth Anything of random weights."""
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(config)
    for name, weights in model.named_parameters():
        if name.startswith("head.") and weights.dim() > 1:
            torch.nn.init.normal_(weights)  # so that pixels differ
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(
        folder
    )
    return folder


def save_zoe(folder):
    """A ZoeDepth of random weights; its processor needs torchvision."""
    pytest.importorskip("torchvision")
    backbone = BeitConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16,
        use_relative_position_bias=True, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=4, num_attractors=[4, 2, 1, 1], bin_embedding_dim=8,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.5, "max_depth": 8.0, "name": "nyu"}],
    )  # fmt: skip
    torch.manual_seed(0)
    ZoeDepthForDepthEstimation(config).save_pretrained(folder)
    ZoeDepthImageProcessor(size={"height": 64, "width": 64}, ensure_multiple_of=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("save", [save_depth, save_anything, save_zoe])
def test_depth_is_what_the_models_own_pipeline_makes_of_its_answers(save, tmp_path):
    estimator = HuggingFaceDepth(save(tmp_path))
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    theirs = pipeline("depth-estimation", str(tmp_path), device="cpu")(PIL.Image.fromarray(pixels.numpy()))
    mine = estimator.estimate((pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).expand(2, -1, -1, -1), K)
    assert mine.shape == (2, 64, 96) and (mine > 0).all() and estimator.metric
    assert torch.allclose(mine[1], theirs["predicted_depth"].clamp_min(1e-3), rtol=1e-4, atol=1e-5)


def test_what_zoe_depth_pads_its_images_with_is_cut_off_again(tmp_path):
    """A model that answers with the very picture it is given: a ramp comes back where it was."""
    estimator = HuggingFaceDepth(save_zoe(tmp_path))
    estimator.model = lambda pixel_values: SimpleNamespace(predicted_depth=pixel_values.mean(1) + 2)
    ramp = torch.linspace(-1, 1, 96).expand(1, 3, 64, 96)
    assert (estimator.estimate(ramp, K) - (ramp[:, 0] + 2)).abs().max() < 0.05


def test_weights_saved_in_half_precision_run_in_float32(tmp_path):
    AutoModelForDepthEstimation.from_pretrained(save_depth(tmp_path)).half().save_pretrained(tmp_path)
    estimator = HuggingFaceDepth(tmp_path)
    assert estimator.estimate(torch.rand(1, 3, 32, 48), K).dtype == estimator.model.dtype == torch.float32


def test_models_that_are_not_what_they_are_taken_for_are_named(tmp_path, monkeypatch):
    relative = save_anything(tmp_path / "relative", "relative")
    for folder, inverse, said in (
        (relative, False, "relative model: pass inverse_depth=True"),
        (save_anything(tmp_path / "metric"), True, "metric model: pass inverse_depth=False"),
    ):
        with pytest.raises(ValueError, match=said):
            HuggingFaceDepth(folder, inverse)
    monkeypatch.setattr("mosaic_gym.model.depth.find_spec", lambda name: object())
    for config, inverse, said in (
        (GLPNConfig(), True, "metric model: pass inverse_depth=False"),
        (DepthProConfig(use_fov_model=False), False, "without its field-of-view head"),
    ):
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=said):
            HuggingFaceDepth(tmp_path, inverse)
    monkeypatch.setattr("mosaic_gym.model.depth.find_spec", lambda name: None)
    ZoeDepthConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="zoedepth model, whose processor needs torchvision"):
        HuggingFaceDepth(tmp_path)
    ViTImageProcessor().save_pretrained(relative)
    with pytest.raises(ValueError, match="ViTImageProcessor.*lacks post_process_depth_estimation"):
        HuggingFaceDepth(relative, inverse=True)


def test_a_relative_map_has_the_median_it_is_loaded_with(tmp_path):
    estimator = HuggingFaceDepth(save_depth(tmp_path), inverse=True, median_depth_m=2.5)
    ramp = torch.linspace(5.0, 40.0, 49).expand(32, 49)
    zeroed = ramp.clone()
    zeroed[:8] = 0.0  # the sky
    answers = torch.stack([ramp, 1e-4 * ramp, zeroed, 0.0 * ramp])
    estimator.model = lambda pixel_values: SimpleNamespace(predicted_depth=answers)
    depth_m = estimator.estimate(torch.zeros(4, 3, 32, 49), K)
    assert not estimator.metric and depth_m.flatten(1).median(1).values[:2].tolist() == pytest.approx([2.5, 2.5])
    assert torch.allclose(depth_m[0], depth_m[1]) and torch.allclose(depth_m[2, 8:], depth_m[0, 8:])
    assert (depth_m[0].diff(dim=1) < 0).all(), "what answers more is nearer"
    assert (depth_m[2, :8] == 250.0).all() and (depth_m[3] == 250.0).all()


def test_scale_follows_what_memory_knows_and_only_there():
    estimate = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1.0
    known = estimate * 1.2
    known[0, :6] = torch.inf
    known[1] = torch.inf
    known[2] = estimate[2] * 9.0
    aligned = align_scale(estimate, known)
    assert torch.allclose(aligned[0], estimate[0] * 1.2)
    assert torch.equal(aligned[1], estimate[1])
    assert torch.allclose(aligned[2], estimate[2] * 1.5)
    assert torch.allclose(align_scale(estimate, known, metric=False)[2], known[2])


def test_any_world_steps_with_a_hugging_face_depth_model(tmp_path):
    model = replace(tiny_model(), depth=HuggingFaceDepth(save_depth(tmp_path)))
    world = MosaicWorld(model)
    state, begun = world.start(Start(0))
    (state,), (view,) = world.step([state], np.array([ACTIONS["forward"]]))
    frame = torch.from_numpy(begun.frames[-1]).permute(2, 0, 1)[None] / 127.5 - 1
    said = model.depth.estimate(frame.float(), world.layout.intrinsics[None])[0].numpy()
    np.testing.assert_allclose(begun.depth_m, said, rtol=1e-4)
    assert view.depth_m.shape == (32, 48) and len(state.memory) == 2


def test_a_world_moves_its_hugging_face_depth_model(tmp_path):
    model = replace(tiny_model(), depth=HuggingFaceDepth(save_depth(tmp_path)))
    model.to("meta")
    assert {weights.device.type for weights in model.depth.model.parameters()} == {"meta"}


def test_how_a_hugging_face_depth_model_is_read_counts_in_a_worlds_fingerprint(tmp_path):
    folder, model = save_depth(tmp_path), tiny_model()
    depths = [HuggingFaceDepth(folder, *how) for how in ((), (True, 3.0), (True, 2.5))]
    taken = [replace(model, depth=depth).fingerprint for depth in (model.depth, *depths)]
    assert len(set(taken)) == 4
    assert replace(model, depth=HuggingFaceDepth(folder)).fingerprint == taken[1]


def test_a_world_with_a_hugging_face_depth_model_says_how_it_is_saved(tmp_path):
    model = replace(tiny_model(), depth=HuggingFaceDepth(save_depth(tmp_path / "depth")))
    with pytest.raises(ValueError, match="holds a ConvDepth.*HuggingFaceDepth.*set model.depth again after loading"):
        model.save_pretrained(tmp_path / "world")
    assert not (tmp_path / "world").exists()
    replace(model, depth=ConvDepth(widths=(8, 8, 16))).save_pretrained(tmp_path / "world")
    assert (tmp_path / "world" / "world.json").exists()
