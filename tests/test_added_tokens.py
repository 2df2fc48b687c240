"""Words that were learned from images, in checkpoints of other programs: as diffusers reads and writes them."""

import json

import pytest
import torch
from safetensors.torch import save_file

import fastdiffusion
from fastdiffusion.adapters import with_loras

diffusers = pytest.importorskip("diffusers")
from loaded_families import get
from tiny_pipelines import build

TEXT = "a newtok cat"
WIDTHS = {"sd15": {"newtok": 16}, "sdxl": {"clip_l": 16, "clip_g": 24}, "flux": {"clip_l": 16, "t5": 32}}


def token(name, path, rows=2):
    """A file of a token of several rows."""
    g = torch.Generator().manual_seed(0)
    save_file({key: torch.randn(rows, n, generator=g) for key, n in WIDTHS[name].items()}, path / "newtok.safetensors")
    return path / "newtok.safetensors"


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_the_pooled_vector_is_that_of_the_end(name, tmp_path):
    """Configurations of Stable Diffusion give the end a wrong number, and CLIP then takes the largest of all tokens.

    That is the added one (transformers #21029).
    """
    build(name).save_pretrained(tmp_path / "old")
    for config in (tmp_path / "old").glob("text_encoder*/config.json"):
        values = json.loads(config.read_text())
        if "projection_dim" in values:  # CLIP's
            config.write_text(json.dumps(values | {"eos_token_id": 2}))
    file = token(name, tmp_path)
    old, new = (fastdiffusion.load(path, device="cpu") for path in (tmp_path / "old", get(name).path))
    for text in ("a cat", TEXT):
        pooled, wanted = (with_loras(model, [file]).encode_prompt([text]).pooled for model in (old, new))
        torch.testing.assert_close(pooled, wanted)
    assert old.modules["text_encoder"].config.eos_token_id == 2, "the model as it was is left alone"


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_a_folder_of_diffusers_has_the_tokens(name, tmp_path):
    """An exported one encodes them here as before, and so does diffusers' own pipeline."""
    model = with_loras(get(name).model, [token(name, tmp_path)])
    wanted = model.encode_prompt([TEXT])
    again = fastdiffusion.load(fastdiffusion.export(model, tmp_path / "out", format="diffusers"), device="cpu")
    for other in (again.encode_prompt([TEXT]), model.encode_prompt([TEXT])):
        assert torch.equal(other.emb, wanted.emb) and (
            wanted.pooled is None or torch.equal(other.pooled, wanted.pooled)
        )
    assert again.conditioner.token_spans(TEXT) == model.conditioner.token_spans(TEXT)
    if name == "sd15":
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
        assert torch.equal(pipe.encode_prompt(TEXT, "cpu", 1, False)[0].detach(), wanted.emb)


def test_a_folder_that_diffusers_wrote_with_a_token_of_several_rows(tmp_path):
    pipe = build("sd15")
    pipe.load_textual_inversion(str(token("sd15", tmp_path)), token="newtok")
    pipe.save_pretrained(tmp_path / "folder")
    model = fastdiffusion.load(tmp_path / "folder", device="cpu")
    torch.testing.assert_close(model.encode_prompt([TEXT]).emb, pipe.encode_prompt(TEXT, "cpu", 1, False)[0].detach())
