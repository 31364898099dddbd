"""QLoRA: LoRA on a base whose linear layers are stored in 4 bits (NormalFloat-4, double quantisation).

The base takes half a byte a weight; embeddings, norms and the head stay fp32. It is quantised after loading, so the
fp32 weights must fit into memory once. compute: dtype of the products; bfloat16 is the paper's, float32 is exact.
The saved adapter remembers its base's quantisation and is always put back on the same numbers.
"""

from typing import Any

from trueline.adapters.contract import adapter


@adapter(arxiv="2305.14314", paper="QLoRA: Efficient Finetuning of Quantized LLMs")
def qlora(
    model: Any,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str = "all-linear",
    head: bool = False,
    compute: str = "float32",
) -> Any:
    from trueline.adapters._lora import attach
    from trueline.errors import TruelineError
    from trueline.quantise import Quantisation, quantise

    if compute not in ("float32", "bfloat16"):
        raise TruelineError(f"qlora: compute is {compute!r}; expected 'float32' or 'bfloat16'.")
    if not hasattr(model, "peft_config"):  # a loaded adapter stands on its own base already
        model = quantise(model, Quantisation(compute=compute))
    return attach(model, r=r, alpha=alpha, dropout=dropout, target_modules=target_modules, head=head, rslora=False)
