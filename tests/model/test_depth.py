"""The estimators behind one call, and the scale that memory gives them."""

import pytest
import torch

from mosaic_gym.model.depth import ConvDepth, HuggingFaceDepth, align_scale
from tests.tiny import save_depth

K = torch.tensor([[[32.0, 0.0, 24.0], [0.0, 25.6, 16.0], [0.0, 0.0, 1.0]]])


def test_the_shipped_estimator_is_told_its_camera():
    torch.manual_seed(0)
    model = ConvDepth(widths=(8, 8, 16)).eval()
    frames = torch.rand(2, 3, 32, 48) * 2 - 1
    depth_m = model.estimate(frames, K.expand(2, 3, 3))
    wider = K * torch.tensor([0.5, 1.0, 1.0])[:, None]
    assert depth_m.shape == (2, 32, 48) and (depth_m > 0).all()
    assert not torch.allclose(depth_m, model.estimate(frames, wider.expand(2, 3, 3)))
    with pytest.raises(ValueError, match="sizes that 8 divides"):
        model.estimate(torch.zeros(1, 3, 30, 48), K)


@pytest.mark.parametrize("inverse", [False, True])
def test_any_hugging_face_depth_model_fits_behind_the_same_call(tmp_path, inverse):
    estimator = HuggingFaceDepth(save_depth(tmp_path), inverse=inverse)
    depth_m = estimator.estimate(torch.rand(2, 3, 32, 48) * 2 - 1, K.expand(2, 3, 3))
    assert depth_m.shape == (2, 32, 48) and depth_m.isfinite().all() and (depth_m > 0).all()


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
