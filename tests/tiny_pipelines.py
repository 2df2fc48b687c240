"""Pipelines of diffusers, tiny and random, built in memory: real tokenizer logic, no file of anybody's."""

import warnings

import torch

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}  # fmt: skip


def byte_letters():
    """A printable letter for each byte, as byte-level tokenizers write them: itself, or one from 256 on."""
    shown, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def clip(transformers, width, projection=None, act="quick_gelu"):
    """A CLIP tokenizer of bytes that knows the word "cat" as a whole, and an encoder of three layers."""
    letters = byte_letters()
    vocabulary = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={s: i for i, s in enumerate(vocabulary)}, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=77
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=projection or width, hidden_act=act,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, kind(config).eval()


def unet(diffusers, width, **options):
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": width,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**config | options).eval()


def vae(diffusers, **options):
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=64, **options,
    ).eval()  # fmt: skip


def _sd(diffusers, transformers, scheduler, act="quick_gelu", **options):
    tokenizer, encoder = clip(transformers, 16, act=act)
    return diffusers.StableDiffusionPipeline(
        vae=vae(diffusers), text_encoder=encoder, tokenizer=tokenizer, unet=unet(diffusers, 16, **options),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd15(diffusers, transformers):
    return _sd(diffusers, transformers, diffusers.PNDMScheduler(**SCHEDULER, skip_prk_steps=True))


def sd2v(diffusers, transformers):
    scheduler = diffusers.DDIMScheduler(**SCHEDULER, prediction_type="v_prediction", clip_sample=False)
    return _sd(diffusers, transformers, scheduler, "gelu", use_linear_projection=True)


def zero_snr(diffusers, transformers):
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return _sd(diffusers, transformers, diffusers.EulerDiscreteScheduler(**SCHEDULER, **options))


def sdxl(diffusers, transformers):
    (one, first), (two, second) = clip(transformers, 16), clip(transformers, 24, 24, "gelu")
    net = unet(
        diffusers, 40, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(diffusers, scaling_factor=0.13025), text_encoder=first, text_encoder_2=second, tokenizer=one,
        tokenizer_2=two, unet=net, scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


FAMILIES = {"sd15": sd15, "sd2v": sd2v, "zero_snr": zero_snr, "sdxl": sdxl}


def build(name, diffusers, transformers):
    """A pipeline with random weights; layers that start at zero get noise, or they would hide every mistake."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = FAMILIES[name](diffusers, transformers)
    for parameter in pipe.unet.parameters():
        if not bool(parameter.detach().any()):
            parameter.data.normal_(std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe
