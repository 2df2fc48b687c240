"""Write the golden model file of the present format: tests/golden/model-v<version>.safetensors.

Run it once when the format's version goes up, and never again for that version: the file stands for all that people
have on their disks, and tests/test_models.py loads every one of them for ever.
"""

from dataclasses import replace
from pathlib import Path

import torch

from fastdiffusion import models, nets, noise
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.io import checkpoints


def main() -> None:
    """Build a tiny net with weights that are not zero anywhere, note what it says, and save it in half precision."""
    path = Path(__file__).parents[1] / "tests" / "golden" / f"model-v{checkpoints.VERSION}.safetensors"
    if path.exists():
        raise SystemExit(f"{path.name} exists. A golden file is never written twice.")
    spec = {"name": "unet", "in_channels": 1, "out_channels": 1, "classes": 2, "width": 4, "head": 4}
    net = nets.build({**spec, "multiples": [1], "blocks": [1], "attention": [0]})
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((0.2 * torch.randn(p.shape)).half())
    denoiser = Denoiser(net, "edm", sigma_data=0.5).eval()
    model = models.Model(denoiser, (1, 8, 8), ("round", "square"), info={"name": "golden", "license": "Apache-2.0"})
    with torch.no_grad():
        x0 = model.denoise(noise.initial([0, 1], model.shape), torch.tensor([0.5, 2.0]), model.cond(["round", -1]))
    model = replace(model, info={**model.info, "check": x0[:, 0, 3, 3].tolist()})
    models.save(model.with_table(4, model.table(4)), path, dtype=torch.float16)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
