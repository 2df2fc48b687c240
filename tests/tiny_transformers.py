"""More pipelines of diffusers, tiny and random: PixArt-Sigma, SANA, Lumina 2, HiDream and Wan."""

import diffusers
import transformers
from tiny_parts import clip, flow_vae, llama_tokenizer, numbered, t5, vae
from tokenizers import processors

flow = diffusers.FlowMatchEulerDiscreteScheduler


def gemma2():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "ca", "cat", *map(chr, range(33, 127))]
    pieces += [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = transformers.GemmaTokenizer(
        vocab=numbered(pieces), merges=[("c", "a"), ("ca", "t")], model_max_length=4096
    )
    start = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = start
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return tokenizer, transformers.Gemma2Model(config).eval()


def pixart():
    tokenizer, encoder = t5(16)
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16, in_channels=4,
        cross_attention_dim=16, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae(scaling_factor=0.13025), transformer=net.eval(),
        scheduler=scheduler,
    )  # fmt: skip


def sana():
    tokenizer, encoder = gemma2()
    sides = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8),
            "qkv_multiscales": ((), (5,)), "layers_per_block": (1, 1),
        }.items()
    }  # fmt: skip
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407, **sides,
    )  # fmt: skip
    net = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
        sample_size=32,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=autoencoder.eval(), transformer=net.eval(), scheduler=scheduler
    )


def lumina2():
    tokenizer, encoder = gemma2()
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=16, hidden_size=32, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(1024, 64, 64), cap_feat_dim=16,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=net.eval(), scheduler=flow(shift=6.0), vae=flow_vae(), text_encoder=encoder, tokenizer=tokenizer
    )


def hidream():
    (one, first), (two, second) = clip(16, 16, length=248), clip(16, 16, "gelu", length=248)
    (three, third), four = t5(32), llama_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(four), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2
    )
    net = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 32], text_emb_dim=32, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=[0, 1],
    )  # fmt: skip
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0), vae=flow_vae(4, 0.3611, 0.1159), text_encoder=first, tokenizer=one,
        text_encoder_2=second, tokenizer_2=two, text_encoder_3=third, tokenizer_3=three,
        text_encoder_4=transformers.LlamaForCausalLM(config).eval(), tokenizer_4=four, transformer=net.eval(),
    )  # fmt: skip


def wan():
    tokenizer, encoder = t5(32, "UMT5EncoderModel", "UMT5Config")
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    net = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=autoencoder.eval(), transformer=net.eval(), scheduler=scheduler
    )
