"""The process group of a DeepSpeed worker: which device is its own, how it joins the others and leaves them."""

from __future__ import annotations

import logging
import warnings

import torch
import torch.distributed as dist

from ensemw2s import env


def best_device() -> torch.device:
    """This worker's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(env.LOCAL_RANK.get() or 0) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def join(device: torch.device) -> None:
    """Joins the process group that is there, or makes one: of torchrun's workers, or of this process alone."""
    _quiet()
    import deepspeed

    if device.type == "cpu":
        # the shared-memory all-reduce would be compiled at the first start; gloo does without
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for setting in (env.RANK, env.LOCAL_RANK, env.WORLD_SIZE, env.MASTER_ADDR):
        setting.set_default()
    if not dist.is_initialized() and env.WORLD_SIZE.get() == "1":
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
    deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)


def leave() -> None:
    """Leaves the process group, in a way that this process can join another one later."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # DeepSpeed forgets the groups that it derived, torch's own does not


def _quiet() -> None:
    env.DS_ACCELERATOR.set_default("cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
