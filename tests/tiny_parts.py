"""Parts of tiny random checkpoints, built in memory: tokenizers with real logic, text encoders, autoencoders."""

import diffusers
import transformers

CHAT = (  # as Qwen's: each message between marks
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_letters():
    """A printable letter for each byte, as byte-level tokenizers write them: itself, or one from 256 on."""
    shown, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def numbered(pieces):
    return {piece: i for i, piece in enumerate(pieces)}


def clip(width, projection=None, act="quick_gelu", length=77):
    """A CLIP tokenizer of bytes that knows the word "cat" as a whole, and an encoder of three layers."""
    letters = byte_letters()
    vocabulary = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab=numbered(vocabulary), merges=[("c", "a"), ("ca", "t</w>")], model_max_length=length
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=length, projection_dim=projection or width, hidden_act=act,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, kind(config).eval()


def t5(width, kind="T5EncoderModel", config="T5Config"):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁cat", -4.0)]
    pieces += [(chr(c), -5.0) for c in range(33, 127)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    config = getattr(transformers, config)(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return tokenizer, getattr(transformers, kind)(config).eval()


def vae(latent=4, **options):
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=latent, sample_size=64, **options,
    ).eval()  # fmt: skip


def flow_vae(latent=16, scaling=0.3611, shift=0.1159):
    return vae(latent, scaling_factor=scaling, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)


def unet(width, **options):
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": width,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**config | options).eval()


def qwen_tokenizer():
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=numbered([*byte_letters(), "ca", "cat", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        merges=[("c", "a"), ("ca", "t")], model_max_length=4096,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(layers=4):
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return tokenizer, transformers.Qwen3ForCausalLM(config).eval()


def qwen_vl():
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 14,
        },
    )  # fmt: skip
    return tokenizer, transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl(layers=4):
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "rope_scaling": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1],
                             "mrope_interleaved": True},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
        },
    )  # fmt: skip
    return tokenizer, transformers.Qwen3VLModel(config).eval()


def llama_tokenizer():
    """Byte pairs with a mark of start, as Llama's and Mistral's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = numbered([*byte_letters(), "<s>", "</s>", "<pad>"])
    fast = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", pieces["<s>"])])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def mistral3():
    tokenizer = llama_tokenizer()
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
    )  # fmt: skip
    return tokenizer, transformers.Mistral3ForConditionalGeneration(config).eval()


def flux2_vae():
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=1, sample_size=64,
    ).eval()  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def qwen_vae():
    return diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
