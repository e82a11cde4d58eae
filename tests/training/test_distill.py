"""Distillation on a tiny Wan of the real classes: every gradient goes where it should, and the student is a world."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mosaic_gym import Start
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.sampler import even_sigmas
from mosaic_gym.model.wan import WanOptions
from mosaic_gym.training import distill, finetune
from mosaic_gym.training.run import Run
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import record_few, save_depth
from tests.tiny_wan import SIZE, save_adapter, save_pipeline


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Recorded episodes, a pipeline, a depth model."""
    root = tmp_path_factory.mktemp("given")
    return record_few(root / "data"), save_pipeline(root / "wan"), save_depth(root / "depth")


def config(given: tuple[Path, Path, Path], out: Path, **changes) -> distill.Config:
    data, pipeline, depth = given
    told = {"steps": 6, "clip": 2, "episodes": 3, "precision": "no", "learning_rate": 1e-3, "every": 2}
    return distill.Config(
        from_=str(pipeline), data=data, out=out, height=SIZE[0], width=SIZE[1], denoising_steps=2,
        **{"loading": WanOptions(dtype="float32", depth=str(depth), guidance=1.0), **told, **changes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(given):
    """A teacher, a pair, and a sample."""
    asked = config(given, Path("unused"))
    world, store = finetune.open_teacher(asked, "cpu")
    episodes = finetune.remember_long_enough(world, store, asked)
    torch.manual_seed(0)
    pair = distill.Pair(world.model.transformer)
    return asked, world.model.transformer, pair, distill._sample(world, store, episodes, asked, seed=4)


def test_levels_run_from_noise_to_nothing():
    assert even_sigmas(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert even_sigmas(2, 5.0).tolist() == pytest.approx([1.0, 5 * 0.5 / 3.0, 0.0])


def test_the_student_learns_through_one_step_of_every_frame_and_the_critic_from_what_it_makes(scene):
    asked, teacher, pair, sample = scene
    generator = torch.Generator().manual_seed(1)
    clip = distill.roll_out(pair.student, sample, asked, generator, 1, learns=True)
    assert clip.shape == sample.latents.shape and clip.requires_grad
    each = [torch.autograd.grad(clip[:, i].sum(), pair.student.proj_out.weight, retain_graph=True)[0] for i in (0, 1)]
    assert all(gradient.abs().max() > 0 for gradient in each)
    with torch.no_grad():
        pair.critic.proj_out.weight.mul_(1.5)  # a critic that says what the teacher says pulls nowhere
    matching, critic = distill.score_losses(teacher, pair.critic, clip, sample, asked, generator)
    matching.backward()
    assert pair.critic.proj_out.weight.grad is None and pair.student.proj_out.weight.grad.abs().max() > 0
    pair.student.zero_grad()
    critic.backward()
    assert pair.critic.proj_out.weight.grad.abs().max() > 0
    assert pair.student.proj_out.weight.grad is None
    assert not distill.roll_out(pair.student, sample, asked, generator, 1, learns=False).requires_grad


def test_a_student_that_makes_what_the_teacher_would_is_not_pulled(scene):
    asked, teacher, pair, sample = scene
    generator = torch.Generator().manual_seed(1)
    clip = sample.latents.clone().requires_grad_()
    same, _ = distill.score_losses(teacher, teacher, clip, sample, asked, generator)
    assert same.item() == 0.0
    with torch.no_grad():
        pair.critic.proj_out.weight.add_(0.1)
    said = []
    for network in (pair.critic, teacher):  # the order in which they are asked
        network.register_forward_hook(lambda *call: said.append(call[-1].detach().float()))
    other, _ = distill.score_losses(teacher, pair.critic, clip, sample, asked, generator)
    assert other.item() > 0.0
    other.backward()
    fake, real = said
    # The velocity leads from the clip to noise: whoever says more of it believes in less of what is there.
    assert (clip.grad * (real - fake)).sum() > 0, "downhill leads to the teacher, and away from the critic"


def test_the_causal_loss_falls(given, tmp_path, monkeypatch):
    told = []
    update = Run.update

    def listen(run, loss, scalars):
        told.append(scalars["causal"])
        update(run, loss, scalars)

    monkeypatch.setattr(Run, "update", listen)
    distill.train(config(given, tmp_path, steps=120, causal_share=1.0, learning_rate=1e-2))
    assert sum(told[-40:]) < 0.97 * sum(told[:40])


def test_both_stages_run_and_the_student_is_a_world_of_few_steps(given, tmp_path):
    distill.train(config(given, tmp_path))
    weights = tmp_path / "weights" / "transformer"
    begun = load_file(given[1] / "transformer" / "diffusion_pytorch_model.safetensors")
    learnt = load_file(weights / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(begun["proj_out.weight"], learnt["proj_out.weight"])
    kept = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert any(name.startswith("critic.") for name in kept) and any(name.startswith("student.") for name in kept)
    loading = {"dtype": "float32", "depth": str(given[2]), "guidance": 1.0, "transformer": str(weights)}
    world = MosaicWorld(WorldModel.from_pretrained(given[1], SIZE, loading), denoising_steps=2)
    assert world.model.transformer.config.causal and not world.model.codec.restarts
    state, _ = world.start(Start(0))
    for _ in range(2):
        (state,), (view,) = world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
    assert view.frames.shape == (4, *SIZE, 3)
    with pytest.raises(ValueError, match="causal itself"):
        distill.train(config(given, tmp_path / "again", loading=WanOptions(**{**loading, "lora": ()})))
    with pytest.raises(ValueError, match="holds no config.json"):
        WorldModel.from_pretrained(given[1], SIZE, {**loading, "transformer": str(tmp_path / "none")})


def test_a_fine_tuned_teacher_makes_a_whole_student(given, tmp_path):
    """Its adapters, one of large effect and what `train world --from` writes by default, are in the student."""
    data, pipeline, depth = given
    loading = {"dtype": "float32", "depth": str(depth), "guidance": 1.0, "lora": [str(save_adapter(tmp_path / "a", 1))]}
    finetune.train(
        finetune.Config(
            from_=str(pipeline), data=data, out=tmp_path / "tuned", height=SIZE[0], width=SIZE[1], steps=1, batch=1,
            rank=2, clip=2, episodes=1, precision="no", loading=WanOptions(**loading),
        )
    )  # fmt: skip
    weights = tmp_path / "tuned" / "weights"
    tuned = {**loading, "lora": [*loading["lora"], str(weights)], "cameras": str(weights / "cameras.safetensors")}
    teacher, plain = (
        WorldModel.from_pretrained(pipeline, SIZE, told).transformer for told in (tuned, {**loading, "lora": []})
    )
    asked = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said, unsaid = (each.blocks[0].attn1.to_q(asked) for each in (teacher, plain))
    assert (said - unsaid).abs().max() > 1e-3
    asks = config(given, tmp_path / "student", steps=2, causal_share=0.5, learning_rate=1e-7)
    distill.train(replace(asks, loading=WanOptions(**tuned)))
    folder = tmp_path / "student" / "weights" / "transformer"
    assert load_file(folder / "diffusion_pytorch_model.safetensors").keys() == plain.state_dict().keys()
    student = WorldModel.from_pretrained(pipeline, SIZE, {**loading, "lora": [], "transformer": str(folder)})
    with torch.no_grad():
        assert torch.allclose(student.transformer.blocks[0].attn1.to_q(asked), said, atol=1e-5)
    world = MosaicWorld(student, denoising_steps=2)
    state, _ = world.start(Start(0))
    _, (view,) = world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
    assert view.frames.shape == (4, *SIZE, 3)
