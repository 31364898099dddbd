"""Write docs/status.json: every method that is planned, its state, and the command that shows it.

done: in the catalogue, equal to an oracle written from its equation, and through the conformance suite. partial: works
with a stated gap. not: not built. Run by `make docs`; a test keeps the file equal to what this script writes.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from trueline import catalogue
from trueline.recipe import packaged

ROOT = Path(__file__).parents[1]
PLANNED = {
    "objectives": [
        "sft",
        "dpo",
        "ipo",
        "cdpo",
        "robust_dpo",
        "slic",
        "ln_dpo",
        "simpo",
        "orpo",
        "cpo",
        "r_dpo",
        "ld_dpo",
        "dpop",
        "rpo",
        "exo",
        "nca",
        "aot",
        "apo_zero",
        "apo_down",
        "sppo",
        "f_dpo",
        "wpo",
        "discopop",
        "tr_dpo",
        "bco_pair",
        "kto",
        "bco",
        "pointwise_dpo",
        "ulma",
        "kldo",
        "tdpo",
        "sparse_po",
        "selm",
        "xpo",
        "nash_md",
        "ipo_md",
        "bonbon",
        "raft",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "cispo",
        "rloo",
        "reinforce_pp",
        "ppo",
        "grao",
        "reward_weighted",
        "plackett_luce",
        "dpo_margin",
        "compo",
        "cut",
        "poft",
        "dckd",
        "adpa",
        "adpa_plus",
        "gkd",
        "bt",
        "preference_model",
        "pointwise_rm",
        "rm_ensemble",
        "process_rm",
    ],
    "feedback": ["ctrl"],
    "measure": [
        "alignment_gap",
        "alignment_tax",
        "best_of_n",
        "diversity",
        "flip_difficulty",
        "idealised_ranking_accuracy",
        "ifeval",
        "kl",
        "kl_estimators",
        "kl_frontier",
        "length_controlled_win_rate",
        "length_statistics",
        "multiple_choice",
        "over_optimisation",
        "preference_win_rate",
        "ranking_accuracy",
        "reward_accuracy",
        "rewardbench",
        "win_rate",
    ],
}
PARTIAL = {
    "length_controlled_win_rate": "AlpacaEval's difficulties and gamed baselines are unpublished; see docs/alpacaeval.md",
    "ifeval": "sentence and capital-word counts use simpler tokenisers than the released checkers",
}
# Measures with a gap in what was verified, in words for the table.
PARTIAL |= {
    "discretion": "published case rates not reproduced: the authors' file is not at hand",
    "compliance_gap": "no experiment with a planted policy; reasoning is read from columns only",
    "honesty": "definitions tested, no behavioural experiment",
    "belief_conflict": "conflicts are read from a column; no veto experiment",
    "adaptivity_gap": "no training of several heads, no test-time adaptation",
    "factual_consistency": "one three-way head for all label kinds; tiny models only",
    "robustness": "paraphrases and translations are read from columns, not made",
    "alignbench": "the judge's question is our wording, so grades are not comparable with the published table",
    "portia": "sentence splitting, similarity and the question are ours; no real judge was asked",
    "varco_arena": "the authors' tie rule and insertion are unknown",
}
# Families that are built and tested and whose issue asks for more than that.
PARTIAL_FAMILIES = {
    "decode": "exact laws on the tabular model and the comparison at equal token-forwards are to come",
    "curate": "the effect of a choice on what is learned is not measured in the lab yet",
}
SHOWS = {
    "objectives": "pytest tests/test_objectives_conformance.py -k {name}",
    "sources": "pytest tests/test_align.py tests/test_sources.py",
    "feedback": "pytest tests/test_feedback_align.py",
    "adapters": "pytest tests/test_adapters.py",
    "measure": "pytest tests/test_measure*.py tests/test_ratings.py",
    "decode": "pytest tests/test_decode_*.py",
    "curate": "pytest tests/test_curate_*.py",
}


def oracles() -> set[str]:
    """Names that tests/oracles/objectives.py defines."""
    tree = ast.parse((ROOT / "tests" / "oracles" / "objectives.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def status() -> list[dict[str, str]]:
    """One row a method: family, name, state, and either the command that shows it or what is missing."""
    built = {(e.family, e.name) for e in catalogue.entries()}
    names = sorted(built | {(family, name) for family, planned in PLANNED.items() for name in planned})
    recipes = {recipe.name for recipe in packaged()}
    rows = []
    for family, name in names:
        proven = (family, name) in built and (family != "objectives" or name in oracles())
        gap = PARTIAL_FAMILIES.get(family) or PARTIAL.get(name)
        state = "partial" if gap else "done" if proven else "not"
        row = {"family": family, "name": name, "state": state}
        if (family, name) in built:
            row["shown_by"] = SHOWS[family].format(name=name)
        elif family == "objectives" and name in recipes:  # a setting of other methods, by its name
            row |= {
                "state": "done",
                "shown_by": f"trueline align --recipe {name}; pytest tests/test_sources.py -k recipe",
            }
        if gap:
            row["missing"] = gap
        rows.append(row)
    return rows


def main() -> None:
    file = ROOT / "docs" / "status.json"
    file.write_text(json.dumps(status(), indent=1) + "\n", encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
