"""Policy: a model that scores groups, with its reference. Scoring is the module's `forward`, and nothing else is.

Only this module is wrapped for distributed training: nothing outside it reaches a weight, so gathering and gradient
reduction stay in one place. Whether prefixes are shared or rows are padded is decided by the probe and is invisible
in the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from trueline.engine.backbone import Backbone
from trueline.engine.distribution import Divergence, evaluate
from trueline.engine.layout import Layout
from trueline.engine.logprob import Head, Logits, kl_and_entropy, token_logp
from trueline.engine.masks import HEADS, MaskHead, activation_masks, layer_states
from trueline.engine.precision import products
from trueline.engine.probe import ProbeResult, probe
from trueline.errors import TruelineError


@dataclass
class Scores:
    """logp_N: log-prob of each counted token (lm head). value_R: a scalar head's number a response, [R] or [R, heads].

    value_K: what a scalar head says at each marked token. divergences: a number a counted token by name. value_N: the
    critic's estimate before each counted token. masks_N: weights of each counted token in the reward and in the KL term,
    [N, 2]. reference_states: what the reference's head reads at each counted token and its way from there to logits,
    where a divergence read them.
    """

    logp_N: Tensor | None = None
    value_R: Tensor | None = None
    value_K: Tensor | None = None
    divergences: dict[str, Tensor] = field(default_factory=dict)
    value_N: Tensor | None = None
    masks_N: Tensor | None = None
    reference_states: tuple[Tensor, Logits] | None = None


@dataclass(frozen=True)
class Voice:
    """A model that takes part in sampling. weight: of its logits; the weights of all voices sum to 1.

    as_itself: the state it must be in while it is called, where another voice is the same model in another state.
    """

    backbone: Backbone
    weight: float = 1.0
    as_itself: Callable[[], AbstractContextManager[Any]] = nullcontext


class Policy(nn.Module):
    """A Hugging Face model (or PEFT model) as a scorer of layouts, and its reference.

    reference: "none", "adapter_off" (the same model with its adapters off: right for a *fresh* adapter only) or a
        frozen model; `starting_reference(model)` chooses between the two. Its parameters are frozen here.
    head: "lm" for token log-probs; "scalar" for a one-label sequence classifier read at each response's last token.
    layout: "auto" shares prefixes where the load-time probe agrees with plain calls; "padded" never shares.
    temperature: logits are divided by it, in the policy and the reference alike (1 for DPO-type objectives).
    precision: "fast" runs every call's forward products fast (wrap the step in `products("fast")` to include the
        backward); "exact" leaves the choice to a surrounding `products` block.
    max_length: longest row that will be scored; attention windows at least as long cannot matter.
    dropout: leave the model's dropout on in training mode. Off otherwise, without touching its configuration.
    teachers: frozen models of the same vocabulary whose token distributions divergences compare with.
    critic: add a value head, a linear map of the hidden state before each token, trained with the policy.
    masks: add learned masks of tokens, "common" (one for reward and KL) or "independent", trained with the policy.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reference: Literal["none", "adapter_off"] | nn.Module = "none",
        head: Literal["lm", "scalar"] = "lm",
        layout: Literal["auto", "padded"] = "auto",
        temperature: float = 1.0,
        precision: Literal["exact", "fast"] = "exact",
        max_length: int = 1024,
        dropout: bool = False,
        teachers: Sequence[nn.Module] = (),
        critic: bool = False,
        masks: str | None = None,
    ):
        super().__init__()
        _check(head in ("lm", "scalar"), f"head is '{head}'; expected lm or scalar.")
        _check(layout in ("auto", "padded"), f"layout is '{layout}'; expected auto or padded.")
        _check(temperature > 0, f"temperature is {temperature}; it divides logits and must be above 0.")
        _check(isinstance(reference, nn.Module) or reference in ("none", "adapter_off"), f"reference is {reference!r}.")
        _check(reference is not model, "The reference is the policy itself; pass frozen_copy(model).")
        if reference == "adapter_off":
            _check(
                hasattr(model, "disable_adapter"),
                "reference='adapter_off' needs a PEFT model; this one has no adapter.",
            )
        self.model = model
        self.reference_model = reference if isinstance(reference, nn.Module) else None
        self.reference_kind = "model" if isinstance(reference, nn.Module) else reference
        self.precision = precision
        self.dropout = dropout
        self._backbone, self.probe_result = _open(model, head, layout, temperature, max_length)
        self._reference_backbone: Backbone | None = None
        if self.reference_model is not None:
            self.reference_model.requires_grad_(False)
            self._reference_backbone, _ = _open(self.reference_model, head, layout, temperature, max_length)
        self.teacher_models = nn.ModuleList(teachers).requires_grad_(False).eval()
        self._teachers = [_open(t, "lm", layout, temperature, max_length)[0] for t in teachers]
        self.critic: nn.Linear | None = None
        if critic:
            _check(head == "lm", "A critic stands beside a language-model head; this policy has a scalar head.")
            place = next(model.parameters())
            self.critic = nn.Linear(
                self._backbone.width, 1, device=place.device, dtype=torch.promote_types(place.dtype, torch.float32)
            )
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        self.masks: nn.ModuleList | None = None
        if masks in HEADS:
            place = next(model.parameters())
            heads = [MaskHead(self._backbone.layers, self._backbone.width) for _ in range(HEADS[masks])]
            self.masks = nn.ModuleList(heads).to(place.device, torch.promote_types(place.dtype, torch.float32))
        self.train(self.model.training)

    @property
    def heads(self) -> int:
        """Numbers a response that a scalar head gives; 1 for a language model."""
        scalar = self._backbone.scalar
        return 1 if scalar is None else int(scalar.out_features)  # type: ignore[arg-type]

    @property
    def temperature(self) -> float:
        """What logits are divided by when text is scored."""
        return self._backbone.head.temperature

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Score at another temperature for a block (readings are taken at 1, whatever the objective's is)."""
        opened = [b for b in (self._backbone, self._reference_backbone, *self._teachers) if b is not None]
        before = [b.head for b in opened]
        for backbone in opened:
            backbone.head = replace(backbone.head, temperature=temperature)
        try:
            yield
        finally:
            for backbone, head in zip(opened, before, strict=True):
                backbone.head = head

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that the optimiser moves, by name: the model's, "critic." and "masks." before those of the heads."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        heads = {"critic": self.critic, "masks": self.masks}
        extra = {f"{k}.{n}": p for k, head in heads.items() if head is not None for n, p in head.named_parameters()}
        return {**named, **extra}

    @torch.no_grad()
    def move_reference(self, mix: float) -> None:
        """reference <- mix * policy + (1 - mix) * reference, for a reference that is a model of its own (TR-DPO).

        Raises TruelineError where it is not the policy's model with the policy's adapter, also at a mix of 0.
        """
        _check(self.reference_model is not None, "Only a reference that is a model of its own can follow the policy.")
        own = dict(self.model.named_parameters())
        for name, parameter in self.own_reference().items():
            _check(
                name in own and own[name].shape == parameter.shape,
                f"The reference's '{name}' has no counterpart in the policy, so it cannot follow it. Leave reference out: "
                "the starting model with its adapter is the reference then.",
            )
            parameter.lerp_(own[name].to(parameter.dtype), mix)

    def own_reference(self) -> dict[str, Tensor]:
        """The reference's weights that it does not share with the policy: what moves when it follows the policy."""
        if self.reference_model is None:
            return {}
        shared = {id(p) for p in self.model.parameters()}
        return {n: p.detach() for n, p in self.reference_model.named_parameters() if id(p) not in shared}

    @property
    def mode(self) -> str:
        """ "shared" or "padded"."""
        return self._backbone.mode

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self,
        layout: Layout,
        reference: bool = False,
        divergences: Mapping[str, Divergence] | None = None,
        critic: bool = False,
        masks: str | None = None,
    ) -> Scores:
        """Score every counted token or response of the layout; the reference's scores carry no gradient.

        divergences: functions of full distributions to evaluate at every counted token, by name. critic: its estimates.
        masks: of tokens, "activations" or as the policy was built.
        """
        with self._products():
            if reference:
                with torch.no_grad(), self._as_reference() as backbone:
                    return _score(backbone, layout)[0]
            scores, hidden = _score(self._backbone, layout)
            if any(d.reads_reference for d in (divergences or {}).values()):
                scores.reference_states = self._reference_states(layout)
            for name, divergence in (divergences or {}).items():
                with torch.set_grad_enabled(torch.is_grad_enabled() and divergence.gradient):
                    scores.divergences[name] = self._divergence(divergence, layout, hidden, scores.reference_states)
            if critic:
                _check(
                    self.critic is not None, "The policy was built without a critic, and its estimates were asked for."
                )
                assert self.critic is not None
                scores.value_N = self.critic(hidden.to(self.critic.weight.dtype)).squeeze(-1)
            if masks is not None:
                scores.masks_N = self._token_masks(layout, masks)
            return scores

    def _token_masks(self, layout: Layout, masks: str) -> Tensor:
        """Weights of the counted tokens in the reward and in the KL term, [N, 2]; gradient in learned masks only."""
        with self._as_reference() as backbone:
            if masks == "activations":
                return activation_masks(backbone, layout)[:, None].expand(-1, 2)
            states = layer_states(backbone, layout)
        _check(self.masks is not None and len(self.masks) == HEADS[masks], f"The policy has no {masks} masks.")
        assert self.masks is not None
        made = [head(states) for head in self.masks]
        return torch.stack([made[0], made[-1]], -1)

    @torch.no_grad()
    def reference_logp(self, layout: Layout, scores: Scores) -> Tensor | None:
        """The reference's log-prob of each counted token, from the states that a divergence of `scores` has read if any
        did; None for a scalar head."""
        if scores.reference_states is None:
            return self(layout, reference=True).logp_N
        with self._products(), self._as_reference() as backbone:
            return token_logp(scores.reference_states[0], backbone.head, layout.target_N)

    def _divergence(
        self, divergence: Divergence, layout: Layout, hidden: Tensor, reference: tuple[Tensor, Logits] | None
    ) -> Tensor:
        """A function of the policy's full distributions and the reference's or the teachers', [N]."""
        own = self._backbone
        others: list[tuple[Tensor, Logits]] = []
        if divergence.reads_reference:
            assert reference is not None
            others = [reference]
        elif divergence.reads_teachers:
            with torch.no_grad():
                others = [(t.states(layout, layout.predictor_N, layout.owner_N), t.head.logits) for t in self._teachers]
        return evaluate(divergence, hidden, own.head.logits, others, vocabulary=own.vocabulary)

    @torch.no_grad()
    def _reference_states(self, layout: Layout) -> tuple[Tensor, Logits]:
        """What the reference's head reads at each counted token, [N, D], and its way from there to logits."""

        def logits(states: Tensor) -> Tensor:
            with self._as_reference() as backbone:  # an adapter may sit on the head, too
                return backbone.head.logits(states)

        with self._as_reference() as backbone:
            return backbone.states(layout, layout.predictor_N, layout.owner_N), logits

    @property
    def head(self) -> Head:
        """From hidden states to logits, with the temperature that text is scored at."""
        return self._backbone.head

    @torch.no_grad()
    def head_states(self, layout: Layout) -> Tensor:
        """What the head reads to predict each counted token, [N, D], without gradient and dropout."""
        with self._products(), self._backbone.evaluating():
            return self._backbone.states(layout, layout.predictor_N, layout.owner_N)

    @torch.no_grad()
    def kl(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """At each counted token's prefix: exact KL(policy || reference) over the vocabulary, and policy entropy; [N], nats."""
        own = self._backbone
        _check(own.scalar is None, "KL needs token distributions; this policy has a scalar head.")

        with self._products(), own.evaluating():
            hidden = own.states(layout, layout.predictor_N, layout.owner_N)
            return kl_and_entropy(hidden, own.head.logits, *self._reference_states(layout), vocabulary=own.vocabulary)

    @torch.no_grad()
    def prompt_states(self, layout: Layout) -> Tensor:
        """Mean hidden state of every row but its last token, [R, D]; each group holds one response."""
        own = self._backbone
        _check(all(len(s.responses) == 1 for s in layout.segments), "Prompts are embedded one response a group.")
        first_T = [(s.start, s.end - 1) for s in layout.segments]
        index = torch.cat([torch.arange(a, b, device=layout.ids_T.device) for a, b in first_T])
        count_R = torch.tensor([b - a for a, b in first_T], device=index.device)
        row = torch.repeat_interleave(torch.arange(len(first_T), device=index.device), count_R)
        with self._products(), own.evaluating():
            hidden = own.states(layout, index, row)
        return hidden.new_zeros(len(first_T), hidden.shape[1]).index_add(0, row, hidden) / count_R[:, None]

    def train(self, mode: bool = True) -> Policy:
        """Training mode without dropout unless it was asked for; the reference never trains.

        Only layers that recompute (gradient checkpointing) are told that they train: it is what switches it on.
        """
        super().train(mode)
        for frozen in (self.reference_model, self.teacher_models):
            if frozen is not None:
                frozen.eval()
        if not self.dropout:
            self.model.eval()
            if self.masks is not None:
                self.masks.eval()
            for module in self.model.modules():
                if mode and isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                    module.training = True
                    for name, value in vars(module).items():  # a few families keep a rate on the layer itself
                        if "dropout" in name and isinstance(value, float):
                            setattr(module, name, 0.0)
        return self

    @contextmanager
    def decoding(self) -> Iterator[nn.Module]:
        """The model under the attention and products that scoring uses, without dropout and gradients: to sample from.

        The attention is set, not assumed: another policy on the same model may have switched it, and the sampler's
        cache would then be ignored without a word.
        """
        with self.speaking() as voices:
            yield voices[0].backbone.model

    @contextmanager
    def speaking(self, reference_share: float = 0.0) -> Iterator[list[Voice]]:
        """`decoding` for the policy, its reference, or both: who speaks, each with its share of the logits.

        Shares 0 and 1 are the policy and the reference alone; between them both models are ready to be called.
        """
        _check(0 <= reference_share <= 1, f"reference_share is {reference_share}; expected a number from 0 to 1.")
        with ExitStack() as stack:
            voices = []
            if reference_share < 1:
                voices.append(Voice(self._backbone, 1 - reference_share))
            if reference_share == 1:
                voices.append(Voice(stack.enter_context(self._as_reference())))
            elif reference_share > 0 and self._reference_backbone is not None:
                voices.append(Voice(self._reference_backbone, reference_share))
            elif reference_share > 0:
                _check(self.reference_kind != "none", "Sampling with the reference needs a policy that has one.")
                voices.append(Voice(self._backbone, reference_share, partial(adapter_off, self.model)))
            stack.enter_context(torch.no_grad())
            for backbone in dict.fromkeys(voice.backbone for voice in voices):
                _check(
                    backbone.scalar is None,
                    "This policy has a scalar head (a reward model); it cannot be sampled. Pass a language model.",
                )
                backbone.set_mode(backbone.mode)
                stack.enter_context(backbone.evaluating())
            stack.enter_context(self._products())
            yield voices

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """The model's own attention for a block, so that `policy.model(...)` and `generate` work as loaded."""
        with self._backbone.plain_attention():
            yield

    @contextmanager
    def _products(self) -> Iterator[None]:
        """fast makes every call fast; exact leaves the choice to the caller's `products` block."""
        with products("fast") if self.precision == "fast" else nullcontext():
            yield

    @contextmanager
    def _as_reference(self) -> Iterator[Backbone]:
        """The backbone that holds the reference, its adapters off where the reference is the model without them."""
        if self._reference_backbone is not None:
            yield self._reference_backbone
            return
        if self.reference_kind == "none":
            raise TruelineError("The policy was built without a reference, and its reference scores were asked for.")
        with adapter_off(self.model), self._backbone.evaluating():
            yield self._backbone


def _open(
    model: nn.Module, head: str, layout: str, temperature: float, max_length: int
) -> tuple[Backbone, ProbeResult]:
    backbone = Backbone(model, head, temperature)
    return backbone, probe(backbone, layout=layout, max_length=max_length)


def _score(backbone: Backbone, layout: Layout) -> tuple[Scores, Tensor]:
    """The scores, and the hidden states they were read from ([N, D], or [R, D] for a scalar head)."""
    if backbone.scalar is not None:
        responses = torch.arange(layout.rows, device=layout.last_R.device)
        places, owners = torch.cat([layout.last_R, layout.mark_K]), torch.cat([responses, layout.marked_K])
        hidden = backbone.states(layout, places, owners)
        value = backbone.scalar(hidden)
        value = value.squeeze(-1) if value.shape[-1] == 1 else value
        value = value if value.dtype == torch.float64 else value.float()
        return Scores(value_R=value[: layout.rows], value_K=value[layout.rows :]), hidden
    hidden = backbone.states(layout, layout.predictor_N, layout.owner_N)
    return Scores(logp_N=token_logp(hidden, backbone.head, layout.target_N)), hidden


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise TruelineError(message)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """A PEFT model without its adapters for a block. PEFT marks every adapter trainable on the way out; we put it back."""
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A frozen copy to serve as reference. Parameters that are already frozen are shared, not copied.

    Of a LoRA model only the adapter is copied. Make it before training; never unfreeze or merge into the shared base.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


@torch.no_grad()
def starting_reference(model: Any) -> Literal["adapter_off"] | nn.Module:
    """The reference that equals this model as it is now: call it before training and before Policy.

    A fresh adapter changes nothing yet, so switching it off later gives the start back for free. A pre-trained
    adapter (or one whose set-up moved the base weights) does, and without it the reference would be the wrong model.
    """
    if hasattr(model, "disable_adapter"):
        ids = torch.arange(min(32, model.get_input_embeddings().weight.shape[0]), device=model.device)[None]
        training = model.training
        model.eval()
        now = model(input_ids=ids, use_cache=False).logits
        with adapter_off(model):
            without = model(input_ids=ids, use_cache=False).logits
        model.train(training)
        if torch.allclose(now, without, rtol=0.0, atol=1e-5):
            return "adapter_off"
    return frozen_copy(model)
