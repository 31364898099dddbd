"""What a launcher asked for: `torchrun` and `accelerate launch` speak through environment variables.

Everything that they can ask for is either done or refused here, before anything is loaded. accelerate's own training loop
is not used, and settings that only it would read must not look as if they had worked. Nothing here imports torch.

    RANK, WORLD_SIZE, LOCAL_RANK      one process of several: replicated weights (DDP's arithmetic), gradients summed
    --shard, or accelerate's FSDP2    weights, gradients and optimiser state spread over the processes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trueline.errors import TruelineError


@dataclass(frozen=True)
class Launch:
    """One process of several. shard: spread weights over them. layers: class of the layers to spread by, where the launcher
    names one. reshard: give whole weights back after each forward pass. cpu: no GPU, whatever there is."""

    rank: int
    size: int
    local_rank: int
    shard: bool = False
    layers: str | None = None
    reshard: bool = True
    cpu: bool = False


def read_launch(environ: Mapping[str, str], *, shard: bool = False) -> Launch | None:
    """The process group that stands ready, or None for a lone process. shard: the run's own option.

    Raises TruelineError for a request that nothing here would carry out.
    """
    _refuse_foreign(environ)
    fsdp = _yes(environ, "ACCELERATE_USE_FSDP")
    if fsdp:
        _refuse_fsdp(environ)
    size = int(environ.get("WORLD_SIZE", "1"))
    if size == 1:
        _refuse_lone(environ, fsdp=fsdp, shard=shard)
        return None
    if "RANK" not in environ:
        raise TruelineError(
            f"WORLD_SIZE is {size} and RANK is not set. Start the processes with torchrun or accelerate launch, or unset it."
        )
    return Launch(
        int(environ["RANK"]),
        size,
        int(environ.get("LOCAL_RANK", "0")),
        shard=shard or fsdp,
        layers=environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP") or None if fsdp else None,
        reshard=not fsdp or environ.get("FSDP_RESHARD_AFTER_FORWARD", "true") != "false",
        cpu=_yes(environ, "ACCELERATE_USE_CPU"),
    )


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one that speaks: the first of several, or a lone one."""
    return environ.get("RANK", "0") == "0"


def _yes(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "false").lower() in ("1", "true", "yes")


def _refuse_foreign(environ: Mapping[str, str]) -> None:
    """Engines that are not ours, and settings of accelerate that its own loop would carry out."""
    if _yes(environ, "ACCELERATE_USE_DEEPSPEED"):
        stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "?")
        raise TruelineError(
            f"DeepSpeed (ZeRO stage {stage}) is not supported. ZeRO 2 and 3 spread what FSDP2 spreads: accelerate launch "
            "--use_fsdp --fsdp_version 2, or torchrun with --shard. ZeRO 0 is plain torchrun."
        )
    if _yes(environ, "ACCELERATE_USE_MEGATRON_LM"):
        raise TruelineError("Megatron-LM is not supported. Use accelerate launch --use_fsdp --fsdp_version 2.")
    split = {n: environ.get(f"PARALLELISM_CONFIG_{n}", "1") for n in ("TP_SIZE", "CP_SIZE", "SP_SIZE")}
    if wide := {n: v for n, v in split.items() if v not in ("", "1")}:
        raise TruelineError(
            f"Tensor, context and sequence parallelism are not supported (found {wide}). Set them to 1."
        )
    if (replicas := environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1")) not in ("", "1"):
        raise TruelineError(f"Hybrid sharding (dp_replicate_size {replicas}) is not supported. Set it to 1.")
    if (mixed := environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise TruelineError(
            f"accelerate's mixed_precision {mixed} has no effect here. Launch with --mixed_precision no and give the run "
            "--precision fast: bf16 products on fp32 weights."
        )
    if (backend := environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()) not in ("NO", ""):
        raise TruelineError(
            f"accelerate's dynamo_backend {backend} has no effect here. Launch with --dynamo_backend no."
        )


def _refuse_fsdp(environ: Mapping[str, str]) -> None:
    """Settings of accelerate's FSDP plugin that are not carried out."""
    if (version := environ.get("FSDP_VERSION", "1")) != "2":
        raise TruelineError(f"FSDP version {version} is not supported. Launch with --fsdp_version 2.")
    if _yes(environ, "FSDP_OFFLOAD_PARAMS"):
        raise TruelineError("FSDP's parameter offload is not supported. Launch with --fsdp_offload_params false.")
    if _yes(environ, "FSDP_ACTIVATION_CHECKPOINTING"):
        raise TruelineError(
            "FSDP's activation checkpointing has no effect here. Give the run --gradient-checkpointing."
        )
    policy = environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    if policy != "TRANSFORMER_BASED_WRAP":
        raise TruelineError(
            f"FSDP's auto_wrap_policy {policy} has no effect here: weights are spread layer by layer. Launch with "
            "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP."
        )
    if environ.get("FSDP_IGNORED_MODULES"):
        raise TruelineError("FSDP's ignored_modules is not supported: all weights are spread. Leave it out.")


def _refuse_lone(environ: Mapping[str, str], *, fsdp: bool, shard: bool) -> None:
    """One process where several were asked for."""
    if fsdp or shard:
        raise TruelineError(
            f"{'FSDP2' if fsdp else 'shard'} has no effect in one process: nothing would be spread. Start several, as in "
            "torchrun --nproc_per_node 2 -m trueline align ... --shard, or leave it out."
        )
    if "ACCELERATE_USE_CPU" in environ and "MASTER_PORT" in environ and "RANK" not in environ:
        raise TruelineError(
            "accelerate launch starts one process on a CPU, whatever --num_processes and its FSDP settings say (without "
            "mpirun). Use torchrun --nproc_per_node N -m trueline align ..., with --shard to spread the weights."
        )
