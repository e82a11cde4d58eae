"""Distillation on a tiny Wan of the real classes: every gradient goes where it should, and the student is a world."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import UniPCMultistepScheduler
from safetensors.torch import load_file

from mosaic_gym import Start
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.sampler import even_sigmas
from mosaic_gym.model.transformer import TIMESTEPS
from mosaic_gym.model.wan.codec import WanPrompts
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.training import distill, distill_losses, finetune, keyframe_cache, pretrained
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
    told |= {"denoising_steps": 2, "loading": WanOptions(dtype="float32", depth=str(depth), guidance=1.0)}
    return distill.Config(from_=str(pipeline), data=data, out=out, height=SIZE[0], width=SIZE[1], **{**told, **changes})


@pytest.fixture(scope="module")
def scene(given, tmp_path_factory):
    """A teacher, student and critic, and a sample whose prompt is one."""
    asked = config(given, tmp_path_factory.mktemp("scene"), shift=5.0, guidance=1.0)
    world, store = pretrained.open_pretrained(asked, "cpu")
    teacher = world.model.transformer
    pair = SimpleNamespace(student=distill.make_student(teacher, asked), critic=distill.trainable_copy(teacher))
    sample = distill.Source(world, store, asked, Accelerator()).sample(seed=4)
    sample = replace(sample, negative_text=world.model.text_encoder.encode([""]))
    assert not torch.equal(sample.text, sample.negative_text)
    return asked, teacher, pair, sample


def test_levels_run_from_noise_to_nothing():
    assert even_sigmas(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert even_sigmas(2, 5.0).tolist() == pytest.approx([1.0, 5 * 0.5 / 3.0, 0.0])


def test_the_student_learns_through_one_step_of_every_frame_and_the_critic_from_what_it_makes(scene):
    asked, teacher, pair, sample = scene
    generator = torch.Generator().manual_seed(1)
    clip = distill_losses.roll_out(pair.student, sample, asked, generator, 1, learns=True)
    assert clip.shape == sample.latents.shape and clip.requires_grad
    each = [torch.autograd.grad(clip[:, i].sum(), pair.student.proj_out.weight, retain_graph=True)[0] for i in (0, 1)]
    assert all(gradient.abs().max() > 0 for gradient in each)
    with torch.no_grad():
        pair.critic.proj_out.weight.mul_(1.5)  # a critic that says what the teacher says pulls nowhere
    matching, critic = distill_losses.score_losses(teacher, pair.critic, clip, sample, asked, generator, learns=True)
    matching.backward()
    assert pair.critic.proj_out.weight.grad is None and pair.student.proj_out.weight.grad.abs().max() > 0
    pair.student.zero_grad()
    critic.backward()
    assert pair.critic.proj_out.weight.grad.abs().max() > 0
    assert pair.student.proj_out.weight.grad is None
    clip = distill_losses.roll_out(pair.student, sample, asked, generator, 1, learns=False)
    assert not clip.requires_grad
    hook = teacher.register_forward_pre_hook(lambda *_: pytest.fail("who does not learn asks no teacher"))
    matching, critic = distill_losses.score_losses(teacher, pair.critic, clip, sample, asked, generator, learns=False)
    hook.remove()
    assert matching is None and critic.requires_grad


def test_a_student_that_makes_what_the_teacher_would_is_not_pulled(scene):
    asked, teacher, pair, sample = scene
    generator = torch.Generator().manual_seed(1)
    clip = sample.latents.clone().requires_grad_()
    same, _ = distill_losses.score_losses(teacher, teacher, clip, sample, asked, generator, learns=True)
    assert same.item() == 0.0
    with torch.no_grad():
        pair.critic.proj_out.weight.add_(0.1)
    said = []
    for network in (pair.critic, teacher):  # the order in which they are asked
        network.register_forward_hook(lambda *call: said.append(call[-1].detach().float()))
    other, _ = distill_losses.score_losses(teacher, pair.critic, clip, sample, asked, generator, learns=True)
    assert other.item() > 0.0
    other.backward()
    fake, real = said
    # The velocity leads from the clip to noise: whoever says more of it believes in less of what is there.
    assert (clip.grad * (real - fake)).sum() > 0, "downhill leads to the teacher, and away from the critic"


def test_the_teacher_is_guided_and_the_critic_is_not(scene):
    asked, teacher, pair, sample = scene
    calls: dict[str, list[tuple[torch.Tensor, ...]]] = {"teacher": [], "critic": []}
    hooks = [
        network.register_forward_hook(lambda _, call, said, name=name: calls[name].append((*call[:2], said.detach())))
        for name, network in (("teacher", teacher), ("critic", pair.critic))
    ]

    def losses(guidance: float) -> tuple[float, float]:
        for each in calls.values():
            each.clear()
        told, generator = replace(asked, guidance=guidance), torch.Generator().manual_seed(1)
        matching, critic = distill_losses.score_losses(
            teacher, pair.critic, sample.latents, sample, told, generator, True
        )
        return float(matching), float(critic.detach())

    def expected(wished: torch.Tensor) -> float:
        """The matching loss by DMD's formulas, for a score of the teacher's."""
        ((noisy, time, fake),) = calls["critic"]
        real = noisy - time / TIMESTEPS * wished
        pull = (noisy - time / TIMESTEPS * fake - real) / (sample.latents - real).abs().mean()
        return float(0.5 * pull.square().mean())

    plain, critic = losses(1.0)
    ((*_, prompted),) = calls["teacher"]  # it is asked once
    assert plain == pytest.approx(expected(prompted), rel=1e-4)
    guided, same = losses(3.0)
    (*_, prompted), (*_, other) = calls["teacher"]
    assert guided == pytest.approx(expected(other + 3.0 * (prompted - other)), rel=1e-4)
    assert same == critic and abs(guided - plain) > 1e-3 * plain
    for hook in hooks:
        hook.remove()


def test_clips_are_scored_neither_as_noise_nor_as_nothing_but_themselves(scene):
    asked, teacher, pair, sample = scene
    said = []
    networks = teacher, pair.critic
    hooks = [each.register_forward_pre_hook(lambda _, call: said.append(float(call[1]))) for each in networks]
    for shift, level in ((1e9, 980.0), (1e-9, 20.0)):
        said.clear()
        told, generator = replace(asked, shift=shift), torch.Generator().manual_seed(1)
        distill_losses.score_losses(teacher, pair.critic, sample.latents, sample, told, generator, learns=True)
        assert said == pytest.approx([level, level])
    for hook in hooks:
        hook.remove()


def test_blocks_run_again_for_their_gradients_which_are_the_same(scene):
    asked, _, pair, sample = scene
    found = []
    for checkpointing in (True, False):
        assert pair.student.gradient_checkpointing and pair.critic.gradient_checkpointing
        if not checkpointing:
            pair.student.disable_gradient_checkpointing()
        ran = []
        hook = pair.student.blocks[0].register_forward_pre_hook(lambda *call, ran=ran: ran.append(1))
        generator = torch.Generator().manual_seed(1)
        loss = distill_losses.causal_loss(pair.student, sample, asked, generator, 1)
        forward = len(ran)
        loss.backward()
        hook.remove()
        found.append([each.grad.clone() for each in pair.student.parameters() if each.grad is not None])
        pair.student.zero_grad()
        # Once for what is read, once for the target.
        assert (forward, len(ran)) == ((2, 4) if checkpointing else (2, 2))
    pair.student.enable_gradient_checkpointing()
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_the_causal_loss_falls(given, tmp_path, monkeypatch):
    told = []
    update = Run.update

    def listen(run, loss, scalars):
        told.append(scalars["causal"])
        update(run, loss, scalars)

    monkeypatch.setattr(Run, "update", listen)
    distill.train(config(given, tmp_path, steps=120, causal_share=1.0, learning_rate=1e-2))
    assert sum(told[-40:]) < 0.97 * sum(told[:40])


def test_both_stages_run_and_the_student_is_a_world_of_few_steps(given, tmp_path, monkeypatch):
    encode, encoded = WanPrompts.encode, []
    monkeypatch.setattr(WanPrompts, "encode", lambda self, prompts: (encoded.extend(prompts), encode(self, prompts))[1])
    options = WanOptions(dtype="float32", depth=str(given[2]), guidance=1.0, negative_prompt="hall")
    distill.train(config(given, tmp_path, loading=options))
    assert encoded.count("hall") == 1, "what guidance leads away from is the same in every sample"
    teacher = WorldModel.from_pretrained(given[1], SIZE, vars(options)).fingerprint
    for name in ("causal", "match"):
        assert json.loads((tmp_path / name / "checkpoint" / "run.json").read_text())["parts"] == teacher
    weights = tmp_path / "weights" / "transformer"
    assert json.loads((weights / "config.json").read_text())["guidance"] == 1.0, "its guidance is in its weights"
    begun = load_file(given[1] / "transformer" / "diffusion_pytorch_model.safetensors")
    learnt = load_file(weights / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(begun["proj_out.weight"], learnt["proj_out.weight"])
    trained = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("causal", "match")]
    assert [{name.split(".")[0] for name in each} for each in trained] == [{"student"}, {"student", "critic"}]
    moments = load_file(tmp_path / "causal" / "checkpoint" / "optimizer.safetensors")
    assert len({name.split(".")[0] for name in moments}) <= len(trained[0]), "the critic has none yet"
    loading = {"dtype": "float32", "depth": str(given[2]), "transformer": str(weights)}
    world = MosaicWorld(WorldModel.from_pretrained(given[1], SIZE, loading))
    assert world.model.transformer.config.causal and not world.model.codec.restarts
    assert world.model.settings.guidance == 1.0, "its teacher's is in its weights"
    state, _ = world.start(Start(0))
    for _ in range(2):
        (state,), (view,) = world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
    assert view.frames.shape == (4, *SIZE, 3)
    with pytest.raises(ValueError, match="the teacher is causal .*transformer.*distilled from"):
        distill.train(config(given, tmp_path / "again", loading=WanOptions(**{**loading, "lora": ()})))
    with pytest.raises(ValueError, match="holds no config.json"):
        WorldModel.from_pretrained(given[1], SIZE, {**loading, "transformer": str(tmp_path / "none")})


def test_a_student_is_stepped_at_the_levels_that_it_was_trained_at(given, tmp_path, monkeypatch):
    data, pipeline, depth = given
    other = save_pipeline(tmp_path / "wan")
    scheduler = UniPCMultistepScheduler.from_pretrained(other / "scheduler", flow_shift=3.0)
    scheduler.save_pretrained(other / "scheduler")
    trained = []
    roll_out = distill.roll_out

    def listen(student, sample, asked, *rest):
        hook = student.register_forward_pre_hook(lambda _, call: trained.append(float(call[1])))
        clip = roll_out(student, sample, asked, *rest)
        hook.remove()
        return clip

    monkeypatch.setattr(distill, "roll_out", listen)
    distill.train(config((data, other, depth), tmp_path / "student", steps=8, causal_share=0.0, denoising_steps=3))
    loading = {"dtype": "float32", "depth": str(depth), "guidance": 1.0}
    loading["transformer"] = str(tmp_path / "student" / "weights" / "transformer")
    for checkpoint in (other, pipeline):  # of which the second has a shift of its own
        world = MosaicWorld(WorldModel.from_pretrained(checkpoint, SIZE, loading))
        assert world.denoising_steps == 3
        state, _ = world.start(Start(0))
        world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
        scheduler = world.model.scheduler
        assert scheduler.sigmas.tolist() == pytest.approx(even_sigmas(3, 3.0).tolist())
        assert sorted(set(trained)) == pytest.approx(sorted(scheduler.timesteps.tolist()))
        assert max(trained) == TIMESTEPS
    asked = WorldModel.from_pretrained(other, SIZE, {**loading, "denoising_steps": 5})
    assert asked.settings.denoising_steps == 5
    assert WorldModel.from_pretrained(other, SIZE, {**loading, "transformer": None}).settings.denoising_steps == 50


class _CutOff(Exception):
    pass


def test_resuming_in_either_stage_equals_not_having_stopped(given, tmp_path, monkeypatch):
    asked = {"episodes": 1, "causal_share": 0.5, "steps": 4}
    distill.train(config(given, tmp_path / "whole", **asked))
    update = Run.update
    for stage in ("causal", "match"):

        def cut_off(run, *arguments, stage=stage):
            update(run, *arguments)
            if run.folder.name == stage and run.step_index == 1:
                run.checkpoint()
                raise _CutOff

        monkeypatch.setattr(Run, "update", cut_off)
        with pytest.raises(_CutOff):
            distill.train(config(given, tmp_path / "pieces", **asked))
    monkeypatch.undo()
    distill.train(config(given, tmp_path / "pieces", **asked))
    place = Path("match") / "checkpoint" / "model.safetensors"
    one, two = (load_file(tmp_path / name / place) for name in ("whole", "pieces"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_teacher_in_half_precision_teaches_a_student_in_float32(given, tmp_path):
    student = distill.train(config(given, tmp_path, steps=2, loading=WanOptions(depth=str(given[2]))))
    assert {each.dtype for each in student.parameters()} == {torch.float32}


@pytest.mark.usefixtures("a_precision_of_its_own")
def test_products_in_half_precision_leave_every_block_its_gradients(given, tmp_path):
    """Of steps without gradients, which come first in a roll-out, no rounded copy of a weight is used in one with."""
    halved = WanOptions(depth=str(given[2]))
    begun = load_file(given[1] / "transformer" / "diffusion_pytorch_model.safetensors")
    asked = {"precision": "bf16", "causal_share": 0.0, "every": 1, "learning_rate": 1e-4, "loading": halved}
    student = distill.train(config(given, tmp_path, **asked, steps=3)).state_dict()
    for name in ("attn1.to_k", "attn2.to_v", "ffn.net.2"):
        for block in range(2):
            key = f"blocks.{block}.{name}.weight"
            # Further than rounding begins it, and than weight decay alone would take it.
            moved = (student[key] - begun[key].bfloat16().float()).abs()
            assert student[key].dtype == torch.float32 and (moved > 1e-7).float().mean() > 0.9


def test_no_stage_is_begun_before_a_run_that_neither_can_go_on_from(given, tmp_path, monkeypatch):
    asked = config(given, tmp_path, steps=2, episodes=1)
    distill.train(asked)
    place = tmp_path / "match" / "checkpoint" / "run.json"
    told = json.loads(place.read_text())
    monkeypatch.setattr(keyframe_cache, "lift_episode", lambda *_: pytest.fail("encoded"))
    distill.train(asked)  # both are finished
    place.write_text(json.dumps({**told, "parts": "another's"}))
    shutil.rmtree(tmp_path / "causal")
    with pytest.raises(ValueError, match="match holds a run that was trained against other weights"):
        distill.train(asked)


def test_what_cannot_be_distilled_is_named(given, tmp_path):
    with pytest.raises(ValueError, match="--causal-share is a finite number from 0 to 1; got 1.5"):
        config(given, tmp_path, causal_share=1.5)
    for steps, share in ((1, 0.5), (3, 0.9), (2, 0.1)):
        with pytest.raises(ValueError, match=f"of --steps {steps} a share of {share} leaves a stage without any"):
            config(given, tmp_path, steps=steps, causal_share=share)
    with pytest.raises(ValueError, match="--guidance is a finite number from 1; got 0.5"):
        config(given, tmp_path, guidance=0.5)


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


def test_episodes_are_encoded_once_and_checkpoints_are_as_frequent_as_asked(given, tmp_path, monkeypatch):
    encoded, remember, written, checkpoint = [], keyframe_cache.lift_episode, [], Run.checkpoint
    monkeypatch.setattr(keyframe_cache, "lift_episode", lambda *told: (encoded.append(told[2]), remember(*told))[1])
    monkeypatch.setattr(Run, "checkpoint", lambda run: (written.append(run.folder.name), checkpoint(run))[1])
    distill.train(config(given, tmp_path, steps=4, checkpoint_minutes=1e-9))
    assert encoded == [0, 1, 2]
    assert written == [stage for stage in distill.STAGES for _ in range(2 + 1)], "every step, and at the end"
    distill.train(config(given, tmp_path, steps=8))
    assert encoded == [0, 1, 2] and len(written) == 6 + 1, "what was encoded is kept, and five minutes are not over"
