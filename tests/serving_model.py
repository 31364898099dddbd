"""A real model behind the server: a tiny policy with sharp weights, a tiny reward model, and what else a test registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.model_folders import ROWS, model_folder, tokenizer
from tests.tiny import tiny_model
from trueline.decoding.rewards import Capabilities
from trueline.serving.host import Host, Limits
from trueline.serving.loading import Settings, open_host


class Raises:
    """A reward that raises whatever it is shown."""

    capabilities = Capabilities("prefix", "text", trained_on_prefixes=True)

    def score(self, lines: Any, counters: Any) -> list[float]:
        raise RuntimeError("the reward model is out of order")

    def score_text(self, prompt: Any, responses: Any, columns: Any) -> list[float]:
        raise RuntimeError("the reward model is out of order")


def folders(folder: Path) -> tuple[Path, Path, Path]:
    """Policy, another model of the same vocabulary, and a reward model."""
    policy = model_folder(folder / "policy", max_position_embeddings=512)
    second = folder / "second"
    tiny_model(vocab_size=ROWS, eos_token_id=0, max_position_embeddings=512, seed=5).save_pretrained(second)
    tokenizer().save_pretrained(second)
    reward = folder / "rm"
    tiny_model(
        head="scalar", vocab_size=ROWS, eos_token_id=0, pad_token_id=3, max_position_embeddings=512, seed=3
    ).save_pretrained(reward)
    tokenizer().save_pretrained(reward)
    return policy, second, reward


def real_host(folder: Path, *, limits: Limits | None = None, **settings: Any) -> Host:
    """Model id 'policy'; rewards 'reward', 'length' and 'broken'; second model 'aligned'."""
    policy, second, reward = folders(folder)
    host = open_host(
        Settings(
            str(policy),
            rewards=[f"reward:{reward}", "length:10-40"],
            second_models=[f"aligned={second}"],
            max_length=512,
            limits=limits or Limits(),
            offline=True,
            **settings,
        )
    )
    host.rewards["broken"] = Raises()  # type: ignore[index]
    return host
