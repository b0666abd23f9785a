"""Base models: the tiny one, loading any that is like Stable Diffusion 1.x, and refusing the rest."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.provenance import package_versions, require
from law_synth.base.files import find_base
from law_synth.base.model import load_base
from law_synth.base.tiny import clip_tokenizer, new_scheduler, write_tiny_base

UNET_WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_tiny_base(folder)
    return folder


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A tiny base that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_stock_pipeline_loads_the_tiny_base_and_draws(tiny):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.safety_checker is None
    images = pipeline(["a polyp", "word " * 200], height=64, width=64, num_inference_steps=2).images
    assert [image.size for image in images] == [(64, 64)] * 2
    assert sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file()) < 5e6


def test_tiny_base_is_the_same_for_the_same_seed_only(tiny, tmp_path):
    state = torch.random.get_rng_state()
    write_tiny_base(tmp_path / "same")
    write_tiny_base(tmp_path / "other", seed=1)
    assert load_base(str(tmp_path / "same")).hash == load_base(str(tiny)).hash
    assert load_base(str(tmp_path / "other")).hash != load_base(str(tiny)).hash
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers stay his own


def test_full_tokenizer_has_the_ids_of_stable_diffusion():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of a cat, 2 dogs' café")["input_ids"]  # open_clip 3.3's SimpleTokenizer
    assert ids == [49406, 320, 1125, 539, 320, 2368, 267, 273, 3255, 262, 15304, 49407]


def test_full_tokenizer_equals_open_clip():
    open_clip = pytest.importorskip("open_clip")
    text = "A colonoscopy image, with 2 polyps! Größe ½ 息肉 <tag>"
    theirs = open_clip.SimpleTokenizer().encode(text)
    assert clip_tokenizer()(text)["input_ids"][1:-1] == theirs


def test_cut_tokenizer_spells_any_text(tiny):
    tokenizer = load_base(str(tiny)).tokenizer
    text = "colonoscopy image with a polyp: größe 息肉"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) < len(tokenizer) == 2048
    assert ids.count(tokenizer.unk_token_id) == 1  # only the end mark
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_prompts_of_any_length(tiny, caplog):
    base = load_base(str(tiny))
    with caplog.at_level(logging.WARNING):
        embeddings = base.encode_prompts(["", "a polyp", "polyp " * 500])
        assert embeddings.shape == (3, 77, 32)
        assert embeddings.dtype == torch.float32
        base.encode_prompts(["polyp " * 600])
    assert sum("cut" in record.message for record in caplog.records) == 1
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    expected = torch.cat(
        [pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in ("", "a polyp", "polyp " * 500)]
    )
    torch.testing.assert_close(embeddings, expected)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_controlnet_fits_the_base(tmp_path, factor, prediction_type):
    write_tiny_base(tmp_path / "base", factor, prediction_type=prediction_type)
    base = load_base(str(tmp_path / "base"))
    assert (base.latent_factor, base.latent_channels) == (factor, 4)
    assert base.scheduler.config.prediction_type == prediction_type
    controlnet = base.new_controlnet()
    embedding = controlnet.config.conditioning_embedding_out_channels
    assert tuple(embedding) == (16, 32, 96, 256)[: 3 if factor == 4 else 4]
    latents, _ = base.posterior(torch.rand(2, 3, 64, 64) * 2 - 1)
    t, text = torch.tensor([3, 900]), base.encode_prompts(["", "a"])
    down, mid = controlnet(latents, t, text, controlnet_cond=torch.ones(2, 3, 64, 64), return_dict=False)
    with_control = base.unet(
        latents, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    assert torch.equal(with_control, base.unet(latents, t, text).sample)  # zero convolutions
    assert sorted({p.abs().sum().item() for d in down for p in d}) == [0]


def test_noise_levels_are_the_base_models(tiny):
    theirs = new_scheduler().alphas_cumprod
    assert torch.equal(load_base(str(tiny)).scheduler.alphas_cumprod, theirs)
    assert theirs[-1] == pytest.approx(0.0047, abs=1e-4)  # Stable Diffusion 1.5


def test_latents_are_shifted_and_scaled_and_decoding_undoes_it(copy):
    plain = load_base(str(copy))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = plain.posterior(images)
    assert mean.shape == std.shape == (2, 4, 8, 8)
    assert (std > 0).all()
    change_json(copy / "vae" / "config.json", scaling_factor=0.5, shift_factor=0.25)
    scaled = load_base(str(copy))
    scaled_mean, scaled_std = scaled.posterior(images)
    torch.testing.assert_close(scaled_mean, (mean - 0.25) * 0.5)
    torch.testing.assert_close(scaled_std, std * 0.5)
    torch.testing.assert_close(scaled.decode(scaled_mean), plain.decode(mean))
    assert plain.decode(1e4 * mean).abs().max() <= 1


def test_autoencoder_tiny(copy):
    from diffusers import AutoencoderTiny

    shutil.rmtree(copy / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(copy / "vae")
    index = json.loads((copy / "model_index.json").read_text())
    change_json(copy / "model_index.json", vae=["diffusers", "AutoencoderTiny"], unet=index["unet"])
    base = load_base(str(copy))
    mean, std = base.posterior(torch.zeros(1, 3, 64, 64))
    assert mean.shape == (1, 4, 16, 16)
    assert base.latent_factor == 4
    assert not std.any()
    assert base.decode(mean).shape == (1, 3, 64, 64)


def test_dtype_and_frozen_weights(tiny):
    base = load_base(str(tiny), dtype=torch.bfloat16)
    for model in (base.unet, base.vae, base.text_encoder):
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in model.parameters())
    mean, _ = base.posterior(torch.zeros(1, 3, 64, 64))
    assert {mean.dtype, base.decode(mean).dtype, base.encode_prompts([""]).dtype} == {torch.float32}


def test_hash_follows_weights_and_configurations_only(tiny, copy):
    before = load_base(str(tiny)).hash
    (copy / "README.md").write_text("another readme")
    shutil.copy(copy / UNET_WEIGHTS, copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert load_base(str(copy)).hash == before
    weights = load_file(copy / UNET_WEIGHTS)
    weights["conv_in.bias"][0] += 1e-6
    save_file(weights, copy / UNET_WEIGHTS, metadata={"format": "pt"})
    changed = load_base(str(copy)).hash
    assert changed != before
    change_json(copy / "scheduler" / "scheduler_config.json", beta_end=0.013)
    assert load_base(str(copy)).hash not in (before, changed)


def test_source_is_an_absolute_folder(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    monkeypatch.setenv("HOME", str(copy.parent))
    for source in ("copy", "./copy", "~/copy", str(copy)):
        assert load_base(source).source == str(copy.resolve())


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        load_base(str(folder))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_folders_that_are_not_a_base(copy, tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    for name in ("word", "my--bases/sd", "bases/sd-", "runs/base."):  # the last three are no hub ids either
        refused(Path(name), "no such folder")
    (copy / "model_index.json").rename(copy / "renamed.json")
    refused(copy, "no model_index.json")
    (copy / ".training").mkdir()  # weights lie there already, the list of cases does not
    refused(copy, "an unfinished base")
    (copy / ".training").rmdir()
    (copy / "model_index.json").write_text("{")
    refused(copy, "model_index.json", "malformed")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_is_missing(copy, part):
    shutil.rmtree(copy / part)
    refused(copy, f"no {part}/")


def test_pickled_weights_are_refused(copy):
    torch.save(load_file(copy / UNET_WEIGHTS), copy / "unet" / "diffusion_pytorch_model.bin")
    (copy / UNET_WEIGHTS).unlink()
    refused(copy, "diffusion_pytorch_model.bin in unet/", "safetensors")


def sharded(folder: Path, names: tuple[str, str]) -> None:
    """Split the UNet's weights into two files of these names, and a table of them."""
    weights = load_file(folder / UNET_WEIGHTS)
    (folder / UNET_WEIGHTS).unlink()
    table = {}
    for number, name in enumerate(names):
        part = dict(list(weights.items())[number::2])
        table |= dict.fromkeys(part, name)
        path = folder / "unet" / name
        save_file(part, path) if name.endswith(".safetensors") else torch.save(part, path)
    index = {"metadata": {"total_size": sum(w.numel() * 4 for w in weights.values())}, "weight_map": table}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_of_safetensors_load_and_count_in_the_hash(copy, tiny):
    stem = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    sharded(copy, (stem.format(1), stem.format(2)))
    base, whole = load_base(str(copy)), load_base(str(tiny))
    for name, weight in whole.unet.state_dict().items():
        assert torch.equal(base.unet.state_dict()[name], weight)
    path = copy / "unet" / stem.format(2)
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    assert load_base(str(copy)).hash != base.hash


@pytest.mark.parametrize("name", ["weights.bin", "other.safetensors", "../vae/x.safetensors"])
def test_a_table_of_shards_names_nothing_that_is_in_no_hash(copy, name):
    """diffusers loads whatever the table names, pickled weights too."""
    sharded(copy, ("diffusion_pytorch_model-00001-of-00002.safetensors", name))
    refused(copy, f"found {name} (by diffusion_pytorch_model.safetensors.index.json) in unet/")


def test_other_ways_to_other_weights_are_refused(copy):
    """transformers adds an adapter, pickled or not, and loads weights that the configuration names."""
    (copy / "text_encoder" / "adapter_config.json").write_text("{}")
    refused(copy, "found adapter_config.json in text_encoder/")
    (copy / "text_encoder" / "adapter_config.json").unlink()
    change_json(copy / "text_encoder" / "config.json", transformers_weights="other.safetensors")
    refused(copy, "found other.safetensors (by config.json) in text_encoder/")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "malformed"),
        ("null", "found null, expected object"),
        ("[]", "found array"),
        ("{", "malformed"),
        ('"text"', "found str"),
    ],
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_configurations_are_one_line(copy, name, content, words):
    (copy / name).write_text(content)
    refused(copy, Path(name).name, words)


@pytest.mark.parametrize("size", [0, 5, 1000])
@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
)
def test_truncated_weights_are_one_line(copy, name, size):
    path = copy / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(copy, f"{path.parent}: cannot be loaded")


def test_weights_that_do_not_fit(copy):
    weights = load_file(copy / UNET_WEIGHTS)
    save_file({k: v for k, v in weights.items() if k != "conv_in.bias"}, copy / UNET_WEIGHTS)
    refused(copy, "no weights for conv_in.bias")
    (copy / UNET_WEIGHTS).write_bytes((copy / UNET_WEIGHTS).read_bytes()[:1000])
    refused(copy, "unet: cannot be loaded")


def test_sdxl_is_refused(copy):
    change_json(copy / "model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["a", "b"])
    refused(copy, "StableDiffusionXLPipeline")


def test_other_unets_are_refused(copy):
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(copy / "unet")
    for change, word in (
        ({"cross_attention_dim": 48}, "cross-attention width 48"),
        ({"in_channels": 9}, "9 input"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn"),
    ):
        UNet2DConditionModel.from_config(config | change).save_pretrained(copy / "unet")
        refused(copy, word)


def test_other_prediction_types_are_refused(copy):
    change_json(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    refused(copy, "prediction_type sample")


def load_in_process(source: str, **environment: str) -> str:
    """Hub variables are read when the hub's client is imported: -> hash and source, or the error."""
    code = (
        "import sys\n"
        "from dataset_conversion.system.errors import run_command\n"
        "from law_synth.base.model import load_base\n"
        "def show():\n"
        "    base = load_base(sys.argv[1])\n"
        "    print(base.hash, base.source)\n"
        "run_command(show)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def test_hub_model_from_the_cache(tiny, tmp_path):
    entry = tmp_path / "models--someone--small-diffusion"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny, entry / "snapshots" / ("0" * 40))
    found = load_in_process("someone/small-diffusion", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert found == f"{load_base(str(tiny)).hash} someone/small-diffusion"


def test_hub_model_whose_other_files_were_left_out(tiny, tmp_path, monkeypatch):
    """The client knows the repository's whole list; neither it nor audit may miss what is never fetched."""
    listing = pytest.importorskip("huggingface_hub._tree_cache", reason="an older client keeps no list")
    from huggingface_hub import constants

    from law_synth.audit import origins

    commit, entry = "a" * 40, tmp_path / "models--someone--small-diffusion"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    folder = entry / "snapshots" / commit
    shutil.copytree(tiny, folder)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    left_out = ["README.md", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"]
    file = listing.TreeCacheEntry(size=1, blob_id="b" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    listing.write_tree_cache(str(entry), commit, dict.fromkeys([*names, *left_out], file))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_base("someone/small-diffusion") == folder
    assert origins._find_base("someone/small-diffusion") == folder


def test_hub_model_without_network_is_one_line_at_once(tmp_path):
    nowhere = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    start = time.monotonic()
    message = load_in_process("stable-diffusion-v1-5/stable-diffusion-v1-5", **nowhere)
    assert message.startswith(
        "error: stable-diffusion-v1-5/stable-diffusion-v1-5: found neither a folder nor a cached"
    )
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir DIR" in message
    assert "\n" not in message
    assert time.monotonic() - start < 60  # the hub's own client alone waits 23 s per file


def test_missing_package_names_the_extra():
    require("synth", "torch", "diffusers")
    with pytest.raises(UserError, match=r"no_such_package.*pip install 'law-order\[synth\]'"):
        require("synth", "no_such_package")


def test_versions_of_packages():
    versions = package_versions("torch", "no-such-package")
    assert versions == {"torch": torch.__version__.split("+")[0], "no-such-package": None}
