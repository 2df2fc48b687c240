"""The names that a person can type, without what they stand for: help and completion read them and import no torch.

Each list is compared with the registry that it names by tests/test_contracts.py.
"""

SAMPLERS = (
    "euler", "ddim", "heun", "gam", "lms", "deis", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "dpm_2", "unipc", "consistency",
    "euler_ancestral", "ddpm", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "predictor_corrector", "restart",
    "repaint",
)  # fmt: skip
SCHEDULES = (
    "karras", "exponential", "linear", "scaled_linear", "cosine", "sigmoid", "flow", "ays_sd1", "ays_sdxl", "ays_svd",
)  # fmt: skip
GUIDANCE = (
    "cfg", "apg", "cfg_zero", "cads", "negative", "autoguidance", "classifier", "feature_guidance", "clip", "inpaint",
)  # fmt: skip
PYTHON_GUIDANCE = ("compose", "loss_guidance", "blind", "self_ensemble", "self_conditioned")  # takes what is no text
POSTERIORS = ("ddnm", "diffpir", "pigdm", "dps", "tmpd")

PARAMETERIZATIONS = ("edm", "v", "noise", "score", "x0", "flow")
SIGMA_DISTRIBUTIONS = ("lognormal", "uniform", "cosine_interpolated", "beta_linear", "beta_cosine", "logit_normal")
LOSS_WEIGHTINGS = ("edm", "noise", "x0", "v", "flow", "min_snr", "p2")
NETS = ("unet-tiny", "unet-small", "unet-base", "unet-latent", "restorer", "dit-tiny", "dit-small", "dit-base")
SMALL_NETS = ("sd-small", "sd3-small")  # checkpoints of other programs' classes
UNETS = ("unet-tiny", "unet-small", "unet-base", "unet-latent", "restorer")
CLASSIFIERS = ("mlp", *UNETS)
OPTIMIZERS = ("adamw", "muon", "schedule_free")
AUGMENTS = (
    "mirror", "turn", "crop", "flip_x", "flip_y", "scale", "rotate", "stretch", "shift", "brightness", "contrast",
    "hue", "saturation",
)  # fmt: skip
TRACKERS = ("tensorboard", "trackio", "wandb")
PRECISIONS = ("auto", "float32", "bfloat16")
LOAD_PRECISIONS = ("float32", "bf16", "fp16", "int8")
ENGINES = ("torch", "openvino")
EXPORTS = ("fastdiffusion", "onnx", "openvino", "diffusers")
PREDICTIONS = ("auto", "eps", "v")
DEVICES = ("cpu", "cuda", "mps")  # with a number, too: cuda:1

DATASETS = ("digits", "fashion-mnist", "emoji", "emoji-scenes", "emoji-multilingual")
ASPECTS = ("bucket", "crop", "pad")
CHANNELS = ("auto", "L", "RGB", "RGBA")
LABELS = ("auto", "folders", "table", "none")
MODELS = ("emoji",)
FORMATS = ("png", "webp")
RNGS = ("own", "a1111", "comfy")
UPSCALES = ("x2", "x4")
SEAMLESS = ("x", "y", "xy")
MAPS = ("auto", "attention", "occlusion")

CORRUPTIONS = (
    "blur", "motion", "defocus", "kernel", "noise", "mix", "gray", "fade", "posterize", "downscale", "pixelate", "jpeg",
    "mask", "scratches", "watermark", "logo",
)  # fmt: skip
UNDOES = ("upscale", "colorize", "dejpeg", "dewatermark", "deblur", "denoise", "inpaint")
RESTORATIONS = ("auto", "supervised", "zero-shot", "cold", "patches")
EDITS = (
    "auto", "diffedit", "flowedit", "p2p", "null-text", "direct", "edit-friendly", "fixed-point", "ddim", "flow-ode",
    "sdedit", "magicmix", "imagic", "reference",
)  # fmt: skip
ANSWERS = ("auto", "mean", "sample")
PROCESSES = ("gaussian", "blur_noise", "heat", "soft")
STYLIZATIONS = ("patches", "features")
TRANSLATIONS = ("regression", "gan", "diffusion", "bridge", "cyclegan")
AUTOENCODERS = ("kl", "vq", "fsq", "gumbel")
CLIP_SIZES = ("tiny", "small", "base")
CLIP_LOSSES = ("infonce", "cloob")
PERSONALIZATIONS = ("lora", "embedding", "dreambooth", "full")
FINETUNINGS = ("lora", "full")
SUBJECTS = ("object", "style")
LORA_KEYS = ("diffusers", "kohya", "comfy")
LORA_ACTIONS = ("merge", "extract", "resize", "convert")
