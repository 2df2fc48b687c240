"""One process and two, the same global batch: every kind of net must end with the same weights.

    python bench/worlds.py                          # 17 kinds, 3 steps: some minutes on one core
    python bench/worlds.py --kinds clip style --steps 30

The largest difference of a weight, of a run of one process and the first of two, where it is, and the share of weights
that differ by more than 1e-4: a wrong gradient moves all, one that is 0 but for rounding moves its own. Sums are
rounded in another order, so that 0 is not to be expected; 1e-4 is what is promised on a CPU.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from kills import KINDS
from torch import Tensor

MOST = 1e-4


def trained(kind: str, world: int, folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the first of ``world`` forked processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_forked(kind, world, rank, port, folder, options) for rank in range(world)]
    failed = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(failed):
        raise RuntimeError(f"{kind} with {world} processes: exit codes {failed}")
    return torch.load(folder / f"{world}.pt", weights_only=True)


def _forked(kind: str, world: int, rank: int, port: int, folder: Path, options: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in ranks.items()}}
    try:
        made = KINDS[kind](folder=folder / f"run-{world}", save_every=0.0, **options)
        if rank == 0:
            torch.save(made.state_dict(), folder / f"{world}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--optimizer", help="another than the kind's own")
    args = parser.parse_args()
    options = {"steps": args.steps} | ({"optimizer": args.optimizer} if args.optimizer else {})
    torch.set_num_threads(1)
    apart = 0
    print("| kind | largest difference | of | in | weights that differ by more |\n|---|---|---|---|---|")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            one, two = (trained(kind, world, Path(folder), options) for world in (1, 2))
        differences = {name: float((w.double() - two[name].double()).abs().max()) for name, w in one.items()}
        worst = max(differences, key=lambda name: differences[name])
        apart += differences[worst] > MOST
        more = sum(int(((w.double() - two[name].double()).abs() > MOST).sum()) for name, w in one.items())
        share = more / sum(w.numel() for w in one.values())
        print(
            f"| {kind} | {differences[worst]:.1e} | {float(one[worst].abs().max()):.2g} | {worst} | {share:.2%} |",
            flush=True,
        )
    print(f"\n{len(args.kinds) - apart} of {len(args.kinds)} kinds agree to {MOST:g}.")
    sys.exit(apart > 0)


if __name__ == "__main__":
    main()
