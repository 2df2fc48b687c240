"""Tiny random networks that condition others, and the pipelines that take images."""

import diffusers
import tiny_pipelines
import torch
import transformers
from safetensors.torch import save_file
from tiny_parts import clip, unet, vae


def filled(net, seed=1):
    """With noise in what starts at zero, or it would hide every mistake."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.1)
    return net.eval()


def euler(**options):
    return diffusers.EulerDiscreteScheduler(**tiny_pipelines.SCHEDULER, **options)


def controlnet(net, seed=1):
    """A ControlNet of a UNet, with weights of its own."""
    torch.manual_seed(seed)
    made = diffusers.ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(4, 8, 8, 8))
    for parameter in made.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return filled(made, seed)


def t2i_adapter(net, channels=3, seed=1):
    torch.manual_seed(seed)
    widths, options = list(net.config.block_out_channels), {"downscale_factor": 8}
    if net.config.addition_embed_type is not None:  # four levels; after the first one the network's is halved
        widths, options = [*widths, widths[-1], widths[-1]], {"downscale_factor": 16, "adapter_type": "full_adapter_xl"}
    return filled(diffusers.T2IAdapter(channels, widths, num_res_blocks=1, **options), seed)


def image_encoder(width=16, projection=24):
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, projection_dim=projection, num_hidden_layers=3,
        num_attention_heads=2, image_size=32, patch_size=8,
    )  # fmt: skip
    return transformers.CLIPVisionModelWithProjection(config).eval()


def processor():
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def ip_adapter(net, path, plus=False, width=16, projection=24):
    """Write an IP-Adapter's file for a UNet."""
    torch.manual_seed(4)
    text = net.config.cross_attention_dim
    if plus:
        resampler = diffusers.models.embeddings.IPAdapterPlusImageProjection(
            embed_dims=width, output_dims=text, hidden_dims=64, depth=4, dim_head=64, heads=1, num_queries=3
        )
        projection = plus_names(filled(resampler).state_dict())
    else:
        projection = {
            "proj.weight": 0.3 * torch.randn(4 * text, projection), "proj.bias": 0.3 * torch.randn(4 * text),
            "norm.weight": torch.ones(text), "norm.bias": 0.1 * torch.randn(text),
        }  # fmt: skip
    tensors, layers = {f"image_proj.{name}": value for name, value in projection.items()}, net.attn_processors
    crosses = [name for name in layers if name.endswith("attn2.processor")]
    for i, name in enumerate(crosses):
        rows = net.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{part}.weight"] = 0.3 * torch.randn(rows, text)
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(path))
    return path


def plus_names(state):
    """The keys of the original code for what diffusers calls otherwise."""
    named = {}
    for key, value in state.items():
        for new, old in (
            (".ln0.", ".0.norm1."), (".ln1.", ".0.norm2."), (".attn.to_out.0.", ".0.to_out."), (".attn.", ".0."),
            (".ff.0.", ".1.0."), (".ff.1.net.0.proj.", ".1.1."), (".ff.1.net.2.", ".1.3."),
        ):  # fmt: skip
            key = key.replace(new, old)
        named[key] = value
    for key in [key for key in named if key.endswith("to_k.weight")]:
        pair = named.pop(key), named.pop(key.replace("to_k", "to_v"))
        named[key.replace("to_k", "to_kv")] = torch.cat(pair)
    return named


def _parts(plain, net, **more):
    parts = {**plain.components, "unet": net, "scheduler": euler(), **more}
    return {name: part for name, part in parts.items() if name != "image_encoder" or name in more}


def pix2pix():
    plain = tiny_pipelines.build("sd15")
    net = filled(unet(16, in_channels=8))
    return diffusers.StableDiffusionInstructPix2PixPipeline(**_parts(plain, net), requires_safety_checker=False)


def upscaler():
    tokenizer, encoder = clip(16, act="gelu")
    small = {"block_out_channels": (4,) * 3, "down_block_types": ("DownEncoderBlock2D",) * 3,
             "up_block_types": ("UpDecoderBlock2D",) * 3}  # fmt: skip
    torch.manual_seed(5)
    return diffusers.StableDiffusionUpscalePipeline(
        vae=diffusers.AutoencoderKL(
            **small, norm_num_groups=2, latent_channels=4, sample_size=64, scaling_factor=0.08333
        ).eval(),
        text_encoder=encoder, tokenizer=tokenizer, unet=filled(unet(16, in_channels=7, num_class_embeds=1000)),
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=euler(prediction_type="v_prediction"), safety_checker=None, feature_extractor=None,
    )  # fmt: skip


def image_variation():
    torch.manual_seed(6)
    return diffusers.StableDiffusionImageVariationPipeline(
        vae=vae(), image_encoder=image_encoder(), unet=filled(unet(24)), scheduler=euler(), safety_checker=None,
        feature_extractor=processor(), requires_safety_checker=False,
    )  # fmt: skip


def unclip():
    tokenizer, encoder = clip(16, act="gelu")
    torch.manual_seed(7)
    normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(24)
    normalizer.mean.data.normal_()
    normalizer.std.data.uniform_(0.5, 2.0)
    net = unet(16, class_embed_type="projection", projection_class_embeddings_input_dim=48)
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=processor(), image_encoder=image_encoder(), image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer,
        text_encoder=encoder, unet=filled(net), scheduler=euler(prediction_type="v_prediction"), vae=vae(),
    )  # fmt: skip


PIPELINES = {made.__name__: made for made in (pix2pix, upscaler, image_variation, unclip)}
