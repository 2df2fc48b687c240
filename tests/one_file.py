"""Pipelines written as their authors write them: one file, with other names, for ``test_checkpoint_files``."""

import json
import re

import torch
from safetensors.torch import save_file

NET = "model.diffusion_model."
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
       "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
       "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip


def swap(text, table):
    for ours, theirs in table.items():
        text = re.sub(ours, theirs, text)
    return text


def unet(net):
    """The names of the first latent diffusion models (Rombach et al. 2022)."""
    state, n = net.state_dict(), net.config.layers_per_block
    attentive = {match[1] for name in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    made = {}
    for name, tensor in state.items():
        stem, leaf = name.rsplit(".", 1)
        kind, block, part, layer, rest = re.match(
            r"(down|mid|up|)(?:_blocks?\.)?(\d*)\.?(\w*)\.?(\d*)\.?(.*)", name
        ).groups()
        inner = int(part == "attentions")
        if stem in TOP:
            name = f"{TOP[stem]}.{leaf}"
        elif part == "downsamplers":
            name = f"input_blocks.{(int(block) + 1) * (n + 1)}.0.op.{leaf}"
        elif part == "upsamplers":
            name = f"output_blocks.{int(block) * (n + 1) + n}.{1 + (block in attentive)}.conv.{leaf}"
        elif kind == "down":
            name = f"input_blocks.{1 + int(block) * (n + 1) + int(layer)}.{inner}.{rest}"
        elif kind == "up":
            name = f"output_blocks.{int(block) * (n + 1) + int(layer)}.{inner}.{rest}"
        else:
            name = f"middle_block.{1 if inner else 2 * int(layer)}.{rest}"
        made[NET + (swap(name, {rf"\b{a}\b": b for a, b in RESNET.items()}) if part == "resnets" else name)] = tensor
    return made


def vae(net, prefix="first_stage_model."):
    last, made = len(net.config.block_out_channels) - 1, {}
    names = {
        r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
        r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
        r"up_blocks\.(\d+)\.resnets\.": lambda m: f"up.{last - int(m[1])}.block.",
        r"up_blocks\.(\d+)\.upsamplers\.0": lambda m: f"up.{last - int(m[1])}.upsample",
        r"mid_block\.resnets\.(\d)": lambda m: f"mid.block_{int(m[1]) + 1}", r"mid_block\.attentions\.0": "mid.attn_1",
        "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
    }  # fmt: skip
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "proj_out"}
    for name, tensor in net.state_dict().items():
        new = swap(name, names)
        if "attn_1" in new:
            new, tensor = swap(new, inner), tensor[..., None, None] if tensor.ndim == 2 else tensor
        made[prefix + new] = tensor
    return made


def clip(encoder, prefix):
    """transformers' names, as before its version 5.6, with a buffer of the first version's files."""
    state = encoder.state_dict()
    old = "" if any(name.startswith("text_model.") for name in state) else "text_model."
    made = {prefix + (name if name.startswith("text_projection") else old + name): t for name, t in state.items()}
    return made | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(encoder, prefix):
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    made = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.ones(()),
    }
    if "text_projection.weight" in state:
        made["text_projection"] = state["text_projection.weight"].T
    pairs = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    for i in range(encoder.config.num_hidden_layers):
        for leaf in ("weight", "bias"):
            layer, block = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
            made[f"{block}attn.in_proj_{leaf}"] = torch.cat([state[f"{layer}self_attn.{x}_proj.{leaf}"] for x in "qkv"])
            made |= {f"{block}{theirs}.{leaf}": state[f"{layer}{ours}.{leaf}"] for ours, theirs in pairs.items()}
    if "text_projection" not in made:  # SD 2's files keep a layer that nobody asks for
        last = encoder.config.num_hidden_layers
        made |= {
            name.replace(f".{last - 1}.", f".{last}."): tensor
            for name, tensor in made.items()
            if f"resblocks.{last - 1}." in name
        }
    return {prefix + name: tensor for name, tensor in made.items()}


def sd3(net):
    """The names of Esser et al. 2024: queries, keys and values in one."""
    state, made = net.state_dict(), {}
    pairs = {"pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj",
             "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
             "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
             "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
             "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
             "norm_out.linear": "final_layer.adaLN_modulation.1",
             "proj_out": "final_layer.linear", r"transformer_blocks\.": "joint_blocks.",
             r"norm1\.linear": "x_block.adaLN_modulation.1",
             r"norm1_context\.linear": "context_block.adaLN_modulation.1",
             r"\bff\.net\.0\.proj": "x_block.mlp.fc1", r"\bff\.net\.2": "x_block.mlp.fc2",
             r"ff_context\.net\.0\.proj": "context_block.mlp.fc1", r"ff_context\.net\.2": "context_block.mlp.fc2",
             r"attn2\.to_out\.0": "x_block.attn2.proj", r"attn\.to_out\.0": "x_block.attn.proj",
             r"attn\.to_add_out": "context_block.attn.proj", r"attn(2?)\.norm_(q|k)": r"x_block.attn\1.ln_\2",
             r"attn\.norm_added_(q|k)": r"context_block.attn.ln_\1"}  # fmt: skip
    for name, tensor in state.items():
        block, _, leaf = name.rpartition(".")
        if re.search(r"\.(to_[qkv]|add_[qkv]_proj)$", block):
            continue
        new = swap(name, pairs)
        last = f"joint_blocks.{net.config.num_layers - 1}.context_block.adaLN"
        if new.startswith(("final_layer.adaLN", last)):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        made[NET + new] = tensor
    for i in range(net.config.num_layers):
        parts = {"x_block.attn": "attn.to_{}", "context_block.attn": "attn.add_{}_proj", "x_block.attn2": "attn2.to_{}"}
        for (theirs, ours), leaf in ((pair, leaf) for pair in parts.items() for leaf in ("weight", "bias")):
            names = [f"transformer_blocks.{i}.{ours.format(x)}.{leaf}" for x in "qkv"]
            if names[0] in state:
                made[f"{NET}joint_blocks.{i}.{theirs}.qkv.{leaf}"] = torch.cat([state[name] for name in names])
    return made


def flux(net):
    """The names of FLUX.1's authors: also the MLP's first layer stands with queries, keys and values."""
    state, made = net.state_dict(), {}
    pairs = {"time_text_embed.(timestep|guidance)_embedder.linear_1": r"\1_in.in_layer",
             "time_text_embed.(timestep|guidance)_embedder.linear_2": r"\1_in.out_layer", "timestep_in": "time_in",
             "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
             "time_text_embed.text_embedder.linear_2": "vector_in.out_layer", "context_embedder": "txt_in",
             "x_embedder": "img_in", r"^proj_out": "final_layer.linear",
             r"norm_out\.linear": "final_layer.adaLN_modulation.1",
             "single_transformer_blocks": "single_blocks", r"^transformer_blocks": "double_blocks",
             r"norm1\.linear": "img_mod.lin", r"norm1_context\.linear": "txt_mod.lin",
             r"\bff\.net\.0\.proj": "img_mlp.0",
             r"\bff\.net\.2": "img_mlp.2", r"ff_context\.net\.0\.proj": "txt_mlp.0", r"ff_context\.net\.2": "txt_mlp.2",
             r"attn\.to_out\.0": "img_attn.proj", r"attn\.to_add_out": "txt_attn.proj",
             r"(double\S+)attn\.norm_q.weight": r"\1img_attn.norm.query_norm.scale",
             r"(double\S+)attn\.norm_k.weight": r"\1img_attn.norm.key_norm.scale",
             r"attn\.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
             r"attn\.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
             r"(single\S+)attn\.norm_q.weight": r"\1norm.query_norm.scale",
             r"(single\S+)attn\.norm_k.weight": r"\1norm.key_norm.scale",
             r"(single\S+)norm\.linear": r"\1modulation.lin",
             r"(single\S+)proj_out": r"\1linear2"}  # fmt: skip
    for name, tensor in state.items():
        if not re.search(r"\.(to_[qkv]|add_[qkv]_proj|proj_mlp)\.", name):
            tensor = torch.cat(tensor.chunk(2)[::-1]) if name.startswith("norm_out") else tensor
            made[NET + swap(name, pairs)] = tensor
    for leaf in ("weight", "bias"):
        for i in range(net.config.num_layers):
            for theirs, ours in (("img_attn", "to_{}"), ("txt_attn", "add_{}_proj")):
                qkv = [state[f"transformer_blocks.{i}.attn.{ours.format(x)}.{leaf}"] for x in "qkv"]
                made[f"{NET}double_blocks.{i}.{theirs}.qkv.{leaf}"] = torch.cat(qkv)
        for i in range(net.config.num_single_layers):
            names = (*(f"attn.to_{x}" for x in "qkv"), "proj_mlp")
            fused = [state[f"single_transformer_blocks.{i}.{name}.{leaf}"] for name in names]
            made[f"{NET}single_blocks.{i}.linear1.{leaf}"] = torch.cat(fused)
    return made


def z_image(net):
    """The names of Z-Image's authors: queries, keys and values in one."""
    pairs = {r"all_final_layer\.2-1": "final_layer", r"all_x_embedder\.2-1": "x_embedder", r"to_out\.0": "out",
             r"norm_(q|k)\.": r"\1_norm."}  # fmt: skip
    state = net.state_dict()
    made = {NET + swap(name, pairs): t for name, t in state.items() if not re.search(r"\.to_[qkv]\.", name)}
    for name in state:
        if name.endswith("attention.to_q.weight"):
            fused = torch.cat([state[name.replace("to_q", f"to_{x}")] for x in "qkv"])
            made[NET + name.replace("to_q", "qkv")] = fused
    return made


def t5(encoder, prefix="text_encoders.t5xxl.transformer."):
    names = {name: tensor for name, tensor in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"}
    return {prefix + name: tensor for name, tensor in names.items()}


def tensors(pipe):
    """All tensors of a pipeline, as one file names them, and the layout that this is."""
    kind = type(pipe).__name__
    if kind == "StableDiffusionXLPipeline":
        texts = clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        texts |= open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
        return "stable-diffusion-xl", unet(pipe.unet) | vae(pipe.vae) | texts
    if kind == "StableDiffusion3Pipeline":
        texts = clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
        texts |= clip(pipe.text_encoder_2, "text_encoders.clip_g.transformer.") | t5(pipe.text_encoder_3)
        return "stable-diffusion-3", sd3(pipe.transformer) | vae(pipe.vae) | texts
    if kind == "FluxPipeline":
        texts = clip(pipe.text_encoder, "text_encoders.clip_l.transformer.") | t5(pipe.text_encoder_2)
        return "flux-1", flux(pipe.transformer) | vae(pipe.vae, "vae.") | texts
    if pipe.unet.config.use_linear_projection:
        return "stable-diffusion-2", unet(pipe.unet) | vae(pipe.vae) | open_clip(
            pipe.text_encoder, "cond_stage_model.model."
        )
    return "stable-diffusion-1", unet(pipe.unet) | vae(pipe.vae) | clip(
        pipe.text_encoder, "cond_stage_model.transformer."
    )


def write(pipe, path, change=lambda tensors: tensors, metadata=None):
    """The pipeline as one file."""
    named = change(tensors(pipe)[1])
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in named.items()}, path, metadata)
    return path


def write_configs(pipe, folder, shipped):
    """The pipeline's own small sizes as if they were what ships for its layout."""
    name = tensors(pipe)[0]
    configs = json.loads((shipped / f"{name}.json").read_text())
    for part in configs:
        if part not in ("model_index.json", "scheduler") and not part.startswith("tokenizer"):
            config = getattr(pipe, part).config
            given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
            configs[part] = {key: given[key] for key in given if not key.startswith("_") or key in configs[part]}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(configs))
