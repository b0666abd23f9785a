"""The split forward pass against diffusers' own, the teacher, and the terms of equation 12."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra synth")

from law_synth.base.model import load_base
from law_synth.base.tiny import write_tiny_base
from law_synth.denoiser import Control, StudentTeacher, decode, decoder_parameters, encode, share_encoder
from law_synth.objective import Batch, TrainingObjective, add_noise, total_loss, velocity
from law_synth.weighting import LearnableAdaptiveWeighter


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    write_tiny_base(folder)
    return folder


@pytest.fixture
def base(base_folder):
    return load_base(str(base_folder))


def awake(controlnet):
    """A ControlNet whose zero convolutions are no longer zero."""
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)
    return controlnet


def batch_of(base, size=64, count=2, seed=0, with_image=True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side = size // base.latent_factor
    mask = torch.zeros(count, 1, size, size)
    mask[:, :, : size // 2, : size // 4] = 1
    latent = torch.nn.functional.adaptive_avg_pool2d(mask, side)
    return Batch(
        latents=torch.randn(count, 4, side, side, generator=generator),
        noise=torch.randn(count, 4, side, side, generator=generator),
        timestep=torch.randint(1000, (count,), generator=generator),
        text=base.encode_prompts(["a polyp"] * count),
        mask=latent,
        condition=mask.expand(-1, 3, -1, -1),
        image=torch.rand(count, 3, size, size, generator=generator) if with_image else None,
    )


@pytest.mark.parametrize("size", [64, 72, 104])  # 72 and 104 px: odd latent sides
def test_split_forward_is_the_whole_forward_bit_by_bit(base, size):
    controlnet, batch = awake(base.new_controlnet()), batch_of(base, size)
    with torch.no_grad():
        down, mid = controlnet(batch.noise, batch.timestep, batch.text, batch.condition, return_dict=False)
        whole = base.unet(
            batch.noise,
            batch.timestep,
            batch.text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        split = decode(
            base.unet,
            encode(base.unet, batch.noise, batch.timestep, batch.text),
            batch.text,
            Control(tuple(down), mid),
        )
    assert torch.equal(whole, split)


def test_shared_encoder_is_one_encoder_and_a_decoder_of_its_own(base, tmp_path):
    copy = share_encoder(base.unet)
    assert copy.down_blocks is base.unet.down_blocks and copy.mid_block is base.unet.mid_block
    own = {id(p) for p in decoder_parameters(copy)}
    assert own.isdisjoint(id(p) for p in base.unet.parameters())
    copy.save_pretrained(tmp_path / "unet")
    from diffusers import UNet2DConditionModel

    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), base.unet.parameters(), strict=True))


def test_encoder_runs_once_for_student_and_teacher(base):
    networks = StudentTeacher(base.unet, base.new_controlnet(), base.new_controlnet())
    calls = []
    base.unet.mid_block.register_forward_hook(lambda *_: calls.append("encoder"))
    for network in (networks.unet, networks.teacher_unet):
        network.conv_out.register_forward_hook(lambda *_: calls.append("decoder"))
    batch = batch_of(base)
    found = networks(batch.noise, batch.timestep, batch.text, batch.condition, batch.image)
    assert calls == ["encoder", "decoder", "decoder"]
    assert torch.equal(found.student, found.teacher)  # zero convolutions: the same at the start


@pytest.mark.parametrize("freeze_decoder", [False, True])
@pytest.mark.parametrize("weighting", ["uniform", "law", "difficulty"])
def test_what_learns(base, freeze_decoder, weighting):
    """Every trainable parameter gets a gradient after the zero convolutions woke up; frozen ones get none."""
    torch.manual_seed(0)
    networks = StudentTeacher(
        base.unet, awake(base.new_controlnet()), awake(base.new_controlnet()), freeze_decoder=freeze_decoder
    )
    weighter = LearnableAdaptiveWeighter(weighting=weighting) if weighting != "uniform" else None
    if weighter:
        torch.nn.init.normal_(weighter.phi[-1].weight)
    objective = TrainingObjective(
        networks, base.scheduler.alphas_cumprod, weighting=weighting, weighter=weighter
    )
    losses = objective(batch_of(base))
    assert (
        set(losses.terms)
        == {"student", "teacher", "distillation"}
        | ({"uniform": set(), "law": {"dice"}, "difficulty": {"difficulty"}}[weighting])
    )
    assert all(values.shape == (2,) for values in losses.terms.values())
    total_loss(losses.terms, dict.fromkeys(losses.terms, 1.0)).backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    learns = {name.split(".")[1] for name, p in objective.named_parameters() if p.requires_grad}
    expected = {"controlnet", "image_controlnet"} | (set() if freeze_decoder else {"unet", "teacher_unet"})
    assert learns == expected | ({"phi"} if weighter else set())


def test_teacher_teaches_and_is_not_taught(base):
    """Equation 11 moves the student only; the teacher's loss reaches the mask ControlNet unless detached."""
    for detach in (False, True):
        networks = StudentTeacher(
            base.unet, awake(base.new_controlnet()), awake(base.new_controlnet()), detach_mask_control=detach
        )
        objective = TrainingObjective(networks, base.scheduler.alphas_cumprod, weighting="uniform")
        terms = objective(batch_of(base)).terms
        terms["distillation"].sum().backward(retain_graph=True)
        assert all(p.grad is None for p in networks.image_controlnet.parameters())
        assert any(p.grad is not None for p in networks.controlnet.parameters())
        networks.zero_grad()
        terms["teacher"].sum().backward()
        assert any(p.grad is not None for p in networks.controlnet.parameters()) == (not detach)


def test_dice_of_empty_masks_is_left_out(base):
    networks = StudentTeacher(base.unet, base.new_controlnet())
    objective = TrainingObjective(
        networks, base.scheduler.alphas_cumprod, weighting="law", weighter=LearnableAdaptiveWeighter()
    )
    batch = batch_of(base, with_image=False)
    one_empty = batch._replace(mask=torch.cat([batch.mask[:1], torch.zeros_like(batch.mask[:1])]))
    alone = objective(batch).terms["dice"][0].item()
    terms = objective(one_empty).terms
    assert terms["dice"].mean().item() == pytest.approx(alone)
    all_empty = objective(batch._replace(mask=torch.zeros_like(batch.mask))).terms
    total_loss(all_empty, {"student": 1.0, "dice": 1.0}).backward()
    assert all_empty["dice"].sum() == 0
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def test_velocity_target_reaches_zero_loss_for_the_right_prediction(base):
    batch, alphas = batch_of(base), base.scheduler.alphas_cumprod
    alpha_bar = alphas[batch.timestep]
    noisy, v = (
        add_noise(batch.latents, batch.noise, alpha_bar),
        velocity(batch.latents, batch.noise, alpha_bar),
    )
    expected = base.scheduler.add_noise(batch.latents, batch.noise, batch.timestep)
    assert torch.allclose(noisy, expected, atol=1e-6)
    assert torch.allclose(
        v, base.scheduler.get_velocity(batch.latents, batch.noise, batch.timestep), atol=1e-6
    )


def test_the_dice_mean_does_not_depend_on_how_a_step_is_cut(base):
    """Images with empty masks are left out of the mean over the step, not over a pass."""
    batch = batch_of(base, count=4)._replace(image=None)
    batch.mask[2:] = 0
    networks = StudentTeacher(base.unet, awake(base.new_controlnet()))
    objective = TrainingObjective(
        networks, base.scheduler.alphas_cumprod, weighter=LearnableAdaptiveWeighter()
    )
    whole = objective(batch).terms["dice"].mean()
    parts = [Batch(*(None if part is None else part[i : i + 1] for part in batch)) for i in range(4)]
    share = torch.full((1,), 0.5)
    cut = [objective(part._replace(several=share)).terms["dice"].mean() for part in parts]
    assert torch.stack(cut).mean().item() == pytest.approx(whole.item(), rel=1e-4)
    assert torch.stack(cut[2:]).tolist() == [0, 0] and whole > 0.01
