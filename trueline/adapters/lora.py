"""LoRA: low-rank updates of the linear layers, W + (alpha / r) B A, with W frozen.

r = 16, alpha = 32 on every linear layer of the body is the setting that matches full training on small data sets
(arXiv 2305.14314 section 4 finds all layers necessary, the rank unimportant). B starts at zero: the policy starts as its reference.
A model that already carries a LoRA adapter goes on training that one.
"""

from typing import Any

from trueline.adapters.contract import adapter


@adapter(arxiv="2106.09685", paper="LoRA: Low-Rank Adaptation of Large Language Models")
def lora(
    model: Any,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str = "all-linear",
    head: bool = False,
    rslora: bool = False,
) -> Any:
    from trueline.adapters._lora import attach

    return attach(model, r=r, alpha=alpha, dropout=dropout, target_modules=target_modules, head=head, rslora=rslora)
