"""Seconds per evaluation of Stable Diffusion 1.5's network (860 million random weights) by engine and precision.

python bench/engines.py [--size 256] [--threads 2]      # about 5 minutes and 12 GB of memory; 7 GB of disk, given back

One guided evaluation is a batch of two. The first line is what diffusers does by default. Conversion is timed apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import torch

from fastdiffusion.adapters import engines


def network() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        net = UNet2DConditionModel(cross_attention_dim=768)
    net, g = net.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data.normal_(0, 0.02, generator=g) if p.ndim > 1 else p.data.zero_()
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.weight.data.fill_(1)
    return net.eval().requires_grad_(False)


def seconds(call, times: int = 3) -> float:
    call()
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, args.size // 8, args.size // 8, generator=g), torch.randn(2, 77, 768, generator=g)
    t, net = torch.tensor([300.5, 300.5]), network()

    def evaluate():
        return net(x, t, encoder_hidden_states=text, return_dict=False)[0]

    truth, base = evaluate(), seconds(evaluate)
    print(f"{'torch float32':24} {base:6.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for precision in engines.PRECISIONS:
            engines.attach({"net": net}, "bench", precision)
            start = time.perf_counter()
            answer = evaluate()
            first, each = time.perf_counter() - start, seconds(evaluate)
            difference = float((answer - truth).abs().max() / truth.abs().max())
            print(
                f"{'openvino ' + precision:24} {each:6.2f} s, {base / each:.1f} times as fast; the first call, with "
                f"conversion and trial, {first:.0f} s; differs by {difference:.1e} {net.forward.refusals}",
                flush=True,
            )
            engines.detach({"net": net})


if __name__ == "__main__":
    main()
