"""Pipelines of diffusers, tiny and random, built in memory: real logic and schedulers, no file of anybody's."""

import warnings

import diffusers
import tiny_transformers as more
import torch
from tiny_parts import clip, flow_vae, flux2_vae, mistral3, qwen3, qwen3_vl, qwen_vae, qwen_vl, t5, unet, vae

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}  # fmt: skip
FLUX_SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
flow = diffusers.FlowMatchEulerDiscreteScheduler


def _sd(scheduler, act="quick_gelu", **options):
    tokenizer, encoder = clip(16, act=act)
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer, unet=unet(16, **options), scheduler=scheduler,
        **NO_CHECKER,
    )  # fmt: skip


def sd15():
    return _sd(diffusers.PNDMScheduler(**SCHEDULER, skip_prk_steps=True))


def sd2v():
    scheduler = diffusers.DDIMScheduler(**SCHEDULER, prediction_type="v_prediction", clip_sample=False)
    return _sd(scheduler, "gelu", use_linear_projection=True)


def zero_snr():
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return _sd(diffusers.EulerDiscreteScheduler(**SCHEDULER, **options))


def lcm():
    return _sd(diffusers.LCMScheduler(**SCHEDULER), time_cond_proj_dim=8)


def sdxl():
    (one, first), (two, second) = clip(16), clip(24, 24, "gelu")  # single files tell the two apart by width
    net = unet(
        40, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025), text_encoder=first, text_encoder_2=second, tokenizer=one, tokenizer_2=two,
        unet=net, scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def sd3():
    (one, first), (two, second), (three, third) = clip(16, 16), clip(16, 16, "gelu"), t5(32)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net.eval(), scheduler=flow(shift=3.0), vae=flow_vae(16, 1.5305, 0.0609), text_encoder=first,
        tokenizer=one, text_encoder_2=second, tokenizer_2=two, text_encoder_3=third, tokenizer_3=three,
    )  # fmt: skip


def sd3_without_t5():
    whole = sd3()
    return diffusers.StableDiffusion3Pipeline(**whole.components | {"text_encoder_3": None, "tokenizer_3": None})


def flux(guidance=True):
    (one, first), (two, second) = clip(16), t5(32)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=flow(**FLUX_SCHEDULER) if guidance else flow(shift=1.0), vae=flow_vae(), text_encoder=first,
        tokenizer=one, text_encoder_2=second, tokenizer_2=two, transformer=net.eval(),
    )  # fmt: skip


def schnell():
    return flux(guidance=False)


def chroma():
    tokenizer, encoder = t5(32)
    net = diffusers.ChromaTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        scheduler=flow(shift=1.0, use_beta_sigmas=True), vae=flow_vae(), text_encoder=encoder, tokenizer=tokenizer,
        transformer=net.eval(),
    )  # fmt: skip


def _flux2_net(guidance):
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    ).eval()  # fmt: skip


def flux2():
    tokenizer, encoder = mistral3()
    return diffusers.Flux2Pipeline(
        scheduler=flow(**FLUX_SCHEDULER), vae=flux2_vae(), text_encoder=encoder, tokenizer=tokenizer,
        transformer=_flux2_net(True),
    )  # fmt: skip


def klein():
    tokenizer, encoder = qwen3()
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(**FLUX_SCHEDULER), vae=flux2_vae(), text_encoder=encoder, tokenizer=tokenizer,
        transformer=_flux2_net(False), is_distilled=False,
    )  # fmt: skip


def qwen_image():
    tokenizer, encoder = qwen_vl()
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = flow(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, shift=1.0, shift_terminal=0.02,
        use_dynamic_shifting=True,
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=scheduler, vae=qwen_vae(), text_encoder=encoder, tokenizer=tokenizer, transformer=net.eval()
    )


def z_image():
    tokenizer, encoder = qwen3()
    net = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0), vae=flow_vae(), text_encoder=encoder, tokenizer=tokenizer, transformer=net.eval()
    )


def krea2():
    tokenizer, encoder = qwen3_vl()
    net = diffusers.Krea2Transformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = flow(base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400,
                     use_dynamic_shifting=True)  # fmt: skip
    return diffusers.Krea2Pipeline(
        scheduler=scheduler, vae=qwen_vae(), text_encoder=encoder, tokenizer=tokenizer, transformer=net.eval(),
        text_encoder_select_layers=(1, 2, 4),
    )  # fmt: skip


FAMILIES = {
    f.__name__: f
    for f in (
        sd15,
        sd2v,
        zero_snr,
        lcm,
        sdxl,
        sd3,
        sd3_without_t5,
        flux,
        schnell,
        chroma,
        flux2,
        klein,
        qwen_image,
        z_image,
        krea2,
    )
}
FAMILIES |= {f.__name__: f for f in (more.pixart, more.sana, more.lumina2, more.hidream, more.wan)}


def build(name):
    """A pipeline with random weights; layers that start at zero get noise, or they would hide every mistake."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = FAMILIES[name]()
    for parameter in (pipe.components.get("unet") or pipe.transformer).parameters():
        if not bool(parameter.detach().isfinite().all() and parameter.detach().any()):
            parameter.data.normal_(std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe
