"""Every number of the lab and of the demo, in one committed file, fixed before any reported seed was run.

"full" is for the demo and the studies; "unit" tests plumbing in seconds and is too weak to show behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

from trueline.lab.world import Size


@dataclass(frozen=True)
class ModelShape:
    """A Llama with tied embeddings. parameters: the count it must have, so that a slip in the shape is noticed."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    parameters: int
    initializer_range: float = 0.05
    positions: int = 128


@dataclass(frozen=True)
class Training:
    """Steps of one align run: batch in groups, learning rate of AdamW falling linearly to a share of its peak."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    final_learning_rate: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class LabSettings:
    """How the artefacts of one world size are made.

    replies: demonstrations the policy imitates. samples_per_prompt: samples of the policy for the training pairs, an
    even number (two make a pair). held_out_pairs: one pair on each of so many held-out prompts.
    """

    shape: ModelShape
    replies: int
    sft: Training
    samples_per_prompt: int
    held_out_pairs: int
    proxy: Training
    proxy_beta: float = 0.5


LAB: dict[Size, LabSettings] = {
    "full": LabSettings(
        shape=ModelShape(hidden=128, layers=2, heads=4, feed_forward=384, parameters=443_648),
        replies=12_000,
        sft=Training(1400, 16, 3e-3, warmup=30, final_learning_rate=0.03, weight_decay=0.01),
        samples_per_prompt=12,
        held_out_pairs=512,
        proxy=Training(258, 16, 1e-3, warmup=10, final_learning_rate=0.03),
    ),
    "unit": LabSettings(
        shape=ModelShape(hidden=64, layers=2, heads=4, feed_forward=128, parameters=89_664),
        replies=2_000,
        sft=Training(250, 16, 5e-3, warmup=30, final_learning_rate=0.03, weight_decay=0.01),
        samples_per_prompt=4,
        held_out_pairs=40,
        proxy=Training(20, 16, 2e-3, warmup=5, final_learning_rate=0.03),
    ),
}


@dataclass(frozen=True)
class DemoSettings:
    """The comparison of the demo: IPO from one start with one number of steps, only the source and the judge differ.

    The loss of `ipo` is 1 / beta^2 times the (beta h - 1/2)^2 of the online study (arXiv 2405.08448) whose settings
    these are, so its clipping threshold of 1 and Adam's epsilon are scaled by 1 / beta^2 here.
    """

    training: Training = Training(120, 32, 7e-4, warmup=10, final_learning_rate=1.0)
    beta: float = 0.03
    clip: float = 1.0
    adam_epsilon: float = 1e-8
    samples: int = 2
    eval_steps: int = 30
    eval_prompts: int = 256
    opponent_samples: int = 4


DEMO = DemoSettings()
QUICK = DemoSettings(
    training=Training(6, 8, 7e-4, warmup=2, final_learning_rate=1.0), eval_steps=3, eval_prompts=24, opponent_samples=2
)
