"""What a measure `takes` to the function that makes it from models and judges."""

from __future__ import annotations

from collections.abc import Callable

from trueline.measuring import activations, behaviour, grading, judged, nli, pairs, sampled, texts, tracing
from trueline.measuring.contract import Made, Request

MAKERS: dict[str, Callable[[Request], Made]] = {
    "logps": pairs.logps,
    "reference_logps": pairs.reference_logps,
    "policy_and_reference_logps": pairs.policy_and_reference_logps,
    "log_ratios": pairs.log_ratios,
    "reward_pairs": pairs.reward_pairs,
    "kl": sampled.kl,
    "token_log_ratios": sampled.token_log_ratios,
    "samples": sampled.samples,
    "rewards": sampled.sampled_rewards,
    "candidate_rewards": sampled.candidate_rewards,
    "text_losses": texts.text_losses,
    "responses": texts.responses,
    "choices": texts.choices,
    "activations": activations.activations,
    "paired_activations": activations.paired_activations,
    "refusals": behaviour.refusals,
    "labelled_rewards": behaviour.labelled_rewards,
    "conditions": behaviour.conditions,
    "answers": behaviour.answers,
    "perturbed": behaviour.perturbed,
    "token_ranks": behaviour.token_ranks,
    "token_corpus": tracing.token_corpus,
    "extracted": tracing.extracted,
    "entailment": nli.entailment,
    "verdicts": judged.verdicts,
    "portia": judged.portia,
    "matches": judged.matches,
    "tournament": judged.tournament,
    "graded": grading.graded,
}
