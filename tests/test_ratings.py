"""Ratings: each method equal to its definition and to a library's, tournaments sound, intervals over prompts."""

import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import spearmanr

from trueline import tournament
from trueline.errors import TruelineError
from trueline.measure.aggregated_ratings import aggregated_ratings
from trueline.measure.ratings import ratings
from trueline.measure.varco_arena import varco_arena
from trueline.ratings import (
    METHODS,
    Matches,
    _truncated_tie,
    _truncated_win,
    elo_sequential,
    rate,
    strengths,
    trueskill,
)

DATA = Path(os.environ.get("TRUELINE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "preferences"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent: set TRUELINE_DATA")
NAMES = [f"s{i}" for i in range(20)]


def random_matches(count=300, systems=5, seed=0, ties=0.2, per_prompt=5, theta=None):
    """Matches drawn from a Bradley-Terry law, some of them tied."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=systems) if theta is None else np.asarray(theta)
    first = rng.integers(systems, size=count)
    second = (first + rng.integers(1, systems, size=count)) % systems
    share = (rng.random(count) < expit(theta[first] - theta[second])).astype(float)
    share[rng.random(count) < ties] = 0.5
    prompt = (np.arange(count) // per_prompt).tolist()
    return Matches.of([NAMES[i] for i in first], [NAMES[i] for i in second], share, prompt, systems=NAMES[:systems])


def by_name(readings):
    return {r.name.removeprefix("rating/"): r.value for r in readings}


# ---- Bradley-Terry ---------------------------------------------------------------------------------------------------


def test_two_systems_differ_by_the_log_odds_of_their_wins_and_ties_are_half_wins():
    found = rate(Matches.of(["a"] * 4, ["b"] * 4, [1, 1, 1, 0]), resamples=0)
    assert found.rating_M == pytest.approx([np.log(3) / 2, -np.log(3) / 2], abs=1e-9)
    tied = rate(Matches.of(["a"] * 4, ["b"] * 4, [1, 1, 0.5, 0.5]), resamples=0)
    assert tied.rating_M == pytest.approx(found.rating_M, abs=1e-9)
    elo = rate(Matches.of(["a"] * 4, ["b"] * 4, [1, 1, 1, 0]), "elo", resamples=0)
    assert elo.rating_M == pytest.approx([1000 + 200 * np.log10(3), 1000 - 200 * np.log10(3)], abs=1e-6)


def test_strengths_are_those_of_choix():
    choix = pytest.importorskip("choix")
    matches = random_matches(ties=0.0)
    won = [(a, b) if s else (b, a) for a, b, s in zip(matches.first_K, matches.second_K, matches.share_K, strict=True)]
    assert rate(matches, resamples=0).rating_M == pytest.approx(choix.opt_pairwise(5, won), abs=1e-5)


def test_strengths_with_ties_are_a_logistic_regression_with_two_half_weight_rows():
    from sklearn.linear_model import LogisticRegression

    matches = random_matches()
    design = np.zeros((len(matches.share_K), 5))
    rows = np.arange(len(design))
    design[rows, matches.first_K], design[rows, matches.second_K] = 1, -1
    model = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-10, max_iter=1000)
    labels = np.repeat([1, 0], len(design))
    weights = np.concatenate([matches.share_K, 1 - matches.share_K])
    kept = weights > 0
    model.fit(np.concatenate([design, design])[kept], labels[kept], sample_weight=weights[kept])
    theta = model.coef_[0] - model.coef_[0].mean()
    assert rate(matches, resamples=0).rating_M == pytest.approx(theta, abs=1e-4)


def test_a_ridge_is_the_precision_of_a_normal_prior():
    from scipy.optimize import minimize

    wins = random_matches(60).wins()[0]

    def loss(theta):
        d = theta[:, None] - theta[None, :]
        return (wins * np.logaddexp(0, -d)).sum() + 0.7 / 2 * (theta**2).sum()

    best = minimize(loss, np.zeros(5), tol=1e-12).x
    assert strengths(wins[None], None, 0.7)[0][0] == pytest.approx(best, abs=1e-5)


def test_planted_ratings_are_recovered_from_a_hundred_thousand_noisy_matches():
    theta = np.array([1.2, 0.4, 0.1, -0.5, -1.2])
    found = rate(random_matches(100_000, theta=theta, ties=0.0), resamples=0)
    assert found.rating_M == pytest.approx(theta, abs=0.05)


def test_order_of_matches_and_names_and_duplicates_do_not_matter_and_strengths_sum_to_zero():
    matches = random_matches()
    base = rate(matches, resamples=0)
    turned = np.random.default_rng(1).permutation(len(matches.share_K))
    shuffled = replace(matches, first_K=matches.first_K[turned], second_K=matches.second_K[turned],
                       share_K=matches.share_K[turned], prompt_K=matches.prompt_K[turned])  # fmt: skip
    assert rate(shuffled, resamples=0).rating_M == pytest.approx(base.rating_M, abs=1e-9)
    exchanged = replace(matches, first_K=matches.second_K, second_K=matches.first_K, share_K=1 - matches.share_K)
    assert rate(exchanged, resamples=0).rating_M == pytest.approx(base.rating_M, abs=1e-9)
    twice = {k: np.concatenate([getattr(matches, k)] * 2) for k in ("first_K", "second_K", "share_K", "prompt_K")}
    assert rate(replace(matches, **twice), resamples=0).rating_M == pytest.approx(base.rating_M, abs=1e-9)
    assert base.rating_M.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["bradley_terry", "davidson", "expected_wins"])
def test_permuting_systems_permutes_ratings(method):
    matches = random_matches()
    order = [3, 0, 4, 1, 2]
    renamed = Matches.of(
        [NAMES[i] for i in matches.first_K], [NAMES[i] for i in matches.second_K], matches.share_K,
        systems=[NAMES[i] for i in order],
    )  # fmt: skip
    assert rate(renamed, method, resamples=0).rating_M == pytest.approx(
        rate(matches, method, resamples=0).rating_M[order], abs=1e-8
    )


def test_equal_numbers_of_wins_both_ways_shrink_a_difference_and_leave_one_of_zero():
    first = ["a"] * 8 + ["b"] * 8 + ["a"] * 8
    second = ["b"] * 8 + ["c"] * 8 + ["c"] * 8
    share = [1] * 6 + [0] * 2 + [1] * 5 + [0] * 3 + [1] * 6 + [0] * 2

    def difference(extra, won=None):
        won = share if won is None else won
        found = rate(
            Matches.of(first + ["a", "b"] * extra, second + ["b", "a"] * extra, won + [1] * 2 * extra), resamples=0
        )
        return found.rating_M[0] - found.rating_M[1]

    assert difference(0) > difference(5) > difference(50) > 0
    even = [1] * 4 + [0] * 4 + [1] * 5 + [0] * 3 + [1] * 5 + [0] * 3
    assert difference(0, even) == pytest.approx(0, abs=1e-9) and difference(50, even) == pytest.approx(0, abs=1e-9)


def test_a_system_that_never_lost_is_named_and_a_ridge_holds_it():
    matches = Matches.of(["a", "a", "b", "c"], ["b", "c", "c", "b"], [1, 1, 1, 1])
    with pytest.raises(TruelineError, match=r"a never lost to the other systems.*ridge such as 0\.1"):
        rate(matches, resamples=0)
    held = rate(matches, ridge=0.1, resamples=0).rating_M
    assert np.isfinite(held).all() and held[0] > held[1] == pytest.approx(held[2])
    with pytest.raises(TruelineError, match="never met"):
        rate(Matches.of(["a", "b", "c", "d"], ["b", "a", "d", "c"], [1, 1, 1, 1]), resamples=0)


def test_davidsons_law_is_fitted_by_maximum_likelihood_and_is_bradley_terrys_without_ties():
    from scipy.optimize import minimize

    matches = random_matches(400, ties=0.3)
    i, j, s = matches.first_K, matches.second_K, matches.share_K

    def loss(x):
        d, log_nu = x[i] - x[j], x[5]
        weights = np.stack([d / 2, np.full(len(d), log_nu), -d / 2])
        chosen = np.where(s == 1, weights[0], np.where(s == 0, weights[2], weights[1]))
        return -(chosen - np.log(np.exp(weights).sum(axis=0))).sum() + (x[:5].sum()) ** 2

    best = minimize(loss, np.zeros(6), tol=1e-10).x
    found = rate(matches, "davidson", resamples=0)
    assert found.rating_M == pytest.approx(best[:5], abs=1e-4)
    assert found.nu == pytest.approx(np.exp(best[5]), rel=1e-4)
    plain = random_matches(ties=0.0)
    assert rate(plain, "davidson", resamples=0).nu == 0
    assert rate(plain, "davidson", resamples=0).rating_M == pytest.approx(rate(plain, resamples=0).rating_M, abs=1e-8)


# ---- TrueSkill, Elo, expected wins -----------------------------------------------------------------------------------


def test_trueskill_is_the_librarys_over_wins_losses_and_ties():
    library = pytest.importorskip("trueskill")
    env = library.TrueSkill(mu=0.0, sigma=0.5, beta=0.25, tau=0.0, draw_probability=0.25)
    matches = random_matches(400, ties=0.3)
    known = [env.create_rating() for _ in range(5)]
    for a, b, s in zip(matches.first_K, matches.second_K, matches.share_K, strict=True):
        if s == 0:
            known[b], known[a] = env.rate_1vs1(known[b], known[a])
        else:
            known[a], known[b] = env.rate_1vs1(known[a], known[b], drawn=s == 0.5)
    mean, deviation = trueskill(matches)
    assert mean[0] == pytest.approx([r.mu for r in known], abs=1e-6)
    assert deviation[0] == pytest.approx([r.sigma for r in known], abs=1e-6)
    assert rate(matches, "trueskill", resamples=0).rating_M == pytest.approx(mean[0])


def test_one_trueskill_update_is_the_written_formula():
    from scipy.stats import norm

    c = np.sqrt(2 * 0.25**2 + 2 * 0.25)
    e = norm.ppf(0.625) * np.sqrt(2) * 0.25 / c
    v = norm.pdf(-e) / norm.cdf(-e)
    mean, deviation = trueskill(Matches.of(["a"], ["b"], [1.0]))
    assert mean[0] == pytest.approx([0.25 / c * v, -0.25 / c * v])
    assert deviation[0] == pytest.approx([np.sqrt(0.25 * (1 - 0.25 / c**2 * v * (v - e)))] * 2)
    assert trueskill(Matches.of(["a"], ["b"], [0.5]))[0][0].tolist() == [0.0, 0.0]


def test_trueskill_stays_finite_where_densities_underflow():
    for value in _truncated_win(np.array([-60.0, 60.0])) + _truncated_tie(
        np.array([60.0, -60.0]), np.array([0.3, 0.3])
    ):
        assert np.isfinite(value).all()
    v, w = _truncated_win(np.array([-60.0]))
    assert v[0] == pytest.approx(60.0, rel=1e-3) and 0 < w[0] <= 1.0


def test_trueskill_depends_on_the_order_and_shuffles_average_it():
    matches = random_matches(40, systems=3, per_prompt=1)
    forward = trueskill(matches)[0][0]
    backward = trueskill(matches, np.arange(40)[::-1][None, :])[0][0]
    assert np.abs(forward - backward).max() > 1e-3
    many = rate(matches, "trueskill", shuffles=400, resamples=0, seed=0).rating_M
    again = rate(matches, "trueskill", shuffles=400, resamples=0, seed=1).rating_M
    assert np.abs(many - again).max() < 0.2 * np.abs(forward - backward).max()


def test_elo_updates_are_the_written_formula():
    matches = Matches.of(["a", "b"], ["b", "c"], [1.0, 0.5])
    a, b, c = elo_sequential(matches, np.array([[0, 1]]), k=32.0)[0]
    assert (
        a == 1016
        and b == pytest.approx(984 + 32 * (0.5 - 1 / (1 + 10 ** (16 / 400))))
        and a + b + c == pytest.approx(3000)
    )


def test_expected_wins_of_the_papers_fixture():
    first, second, share = ["0", "0", "0", "0", "1", "1"], ["1", "1", "2", "2", "2", "2"], [1, 1, 1, 0, 1, 1]
    found = rate(Matches.of(first, second, share), "expected_wins", resamples=0)
    assert found.rating_M.tolist() == [0.75, 0.5, 0.25]


def test_systems_that_always_tie_get_half_and_ties_beside_wins_are_ignored():
    found = rate(Matches.of(["a", "a", "b"], ["b", "c", "c"], [0.5, 1, 1]), "expected_wins", resamples=0)
    assert found.rating_M.tolist() == [0.75, 0.75, 0.0]
    with_ties = rate(
        Matches.of(["a", "a", "b", "a"], ["b", "c", "c", "c"], [0.5, 1, 1, 0.5]), "expected_wins", resamples=0
    )
    assert with_ties.rating_M.tolist() == [0.75, 0.75, 0.0]
    with pytest.raises(TruelineError, match="'a' and 'c' never met"):
        rate(Matches.of(["a", "b"], ["b", "c"], [1, 1]), "expected_wins", resamples=0)


def test_a_missing_score_counts_for_nobody():
    score = [1.0, 0.0, np.nan, 0.0, 1.0, 1.0]
    system, prompt = ["a", "b", "a", "b", "a", "b"], [0, 0, 1, 1, 2, 2]
    matches = Matches.from_scores(score, system, prompt)
    assert matches.share_K.tolist() == [1.0, 0.5]
    assert rate(matches, "expected_wins", resamples=0).rating_M.tolist() == [1.0, 0.0]
    assert Matches.of(["a", "a"], ["b", "b"], [1.0, np.nan]).unjudged == 1


def test_outcomes_from_scores_are_antisymmetric_and_in_the_order_that_trueskill_goes_by():
    rng = np.random.default_rng(0)
    score = rng.integers(3, size=(4, 6)).astype(float)
    rows = [(score[i, s], NAMES[i], s) for s in range(6) for i in range(4)]
    matches = Matches.from_scores(*zip(*rows, strict=True))
    wanted = [(s, i, j) for s in range(6) for i, j in combinations(range(4), 2)]
    assert list(zip(matches.prompt_K, matches.first_K, matches.second_K, strict=True)) == wanted
    wins = matches.wins()[0]
    sign = np.sign(score[:, None] - score[None, :]).sum(axis=2)
    assert wins - wins.T == pytest.approx(sign)


# ---- scores to ratings (arXiv 2502.09416) ----------------------------------------------------------------------------


def heavy_tailed(seed=0, prompts=300):
    """Four systems, each better than the next on most sentences; now and then a bad one is scored absurdly high."""
    rng = np.random.default_rng(seed)
    score = np.arange(4)[::-1, None] * 0.5 + rng.normal(size=(4, prompts))
    score[3, rng.random(prompts) < 0.02] += 200.0
    return [(score[i, s], NAMES[i], s) for s in range(prompts) for i in range(4)]


@pytest.mark.parametrize("method", ["expected_wins", "trueskill", "bradley_terry"])
def test_outliers_fool_the_mean_and_no_rating_by_comparisons(method):
    columns = list(zip(*heavy_tailed(), strict=True))
    assert next(iter(by_name(aggregated_ratings(*columns, method="mean", resamples=0)))) == "s3"
    assert list(by_name(aggregated_ratings(*columns, method=method, resamples=0))) == NAMES[:4]


def test_a_mean_is_a_mean_with_its_interval():
    found = aggregated_ratings([1.0, 3.0, np.nan, 2.0], ["a", "a", "b", "b"], [0, 1, 0, 1], method="mean")
    assert by_name(found) == {"a": 2.0, "b": 2.0} and found[0].low < 2 < found[0].high and found[1].low is None


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_interval_around_its_rating(method):
    matches = random_matches(600, ties=0.2)
    found = rate(matches, method, resamples=200)
    assert (found.low_M < found.rating_M).all() and (found.rating_M < found.high_M).all()
    assert (found.rank_low_M <= found.rank_M).all() and (found.rank_M <= found.rank_high_M).all()
    assert by_name(ratings(*columns_of(matches), method=method, resamples=0)) == pytest.approx(found.named())


def columns_of(matches):
    names = matches.systems
    return (
        [names[i] for i in matches.first_K],
        [names[i] for i in matches.second_K],
        matches.share_K.tolist(),
        matches.prompt_K.tolist(),
    )


def test_prompts_are_resampled_whole():
    """Ten copies of each match under one prompt tell nothing new: intervals stay as wide as without them."""
    once = random_matches(300, ties=0.0, per_prompt=1)
    copies = {k: np.repeat(getattr(once, k), 10) for k in ("first_K", "second_K", "share_K", "prompt_K")}
    narrow, wide = rate(once, resamples=300), rate(replace(once, **copies), resamples=300)
    assert wide.high_M - wide.low_M == pytest.approx(narrow.high_M - narrow.low_M, rel=1e-6)
    own = rate(replace(once, **copies | {"prompt_K": np.arange(3000)}, prompts=3000), resamples=300)
    assert (own.high_M - own.low_M).mean() < 0.5 * (wide.high_M - wide.low_M).mean()


@pytest.mark.slow
def test_intervals_hold_planted_strengths_about_95_percent_of_the_time():
    theta = np.array([0.8, 0.2, -0.2, -0.8])
    held = []
    for seed in range(120):
        found = rate(random_matches(400, 4, seed=seed, theta=theta, ties=0.0, per_prompt=4), resamples=200)
        held.append((found.low_M <= theta) & (theta <= found.high_M))
    assert 0.92 < np.mean(held) < 0.98


def test_where_resamples_are_separable_there_is_no_interval():
    few = Matches.of(["a"] * 6, ["b"] * 6, [1, 1, 1, 1, 1, 0])
    found = rate(few, resamples=200)
    assert found.low_M is None and found.separable > 0.2
    assert rate(few, ridge=0.5, resamples=200).low_M is not None
    reading = ratings(["a"] * 6, ["b"] * 6, [1, 1, 1, 1, 1, 0])[0]
    assert reading.low is None and reading.items[0]["separable_resamples"] > 0.2


# ---- tournaments -----------------------------------------------------------------------------------------------------


def judged_by(skill, accuracy=1.0, seed=0, calls=None):
    rng = np.random.default_rng(seed)

    def compare(pairings):
        if calls is not None:
            calls.append(len(pairings))
        better = [skill[a] > skill[b] for _, a, b in pairings]
        return [float(x if rng.random() < accuracy else not x) for x in better]

    return compare


@pytest.mark.parametrize("systems", [2, 3, 5, 8, 13])
def test_every_prompt_has_one_undefeated_system_and_each_other_one_is_out_once(systems):
    played = tournament.single_elimination(systems, 7, judged_by(range(systems), 0.7), seed=3)
    for prompt in range(7):
        own = [m for m in played if m.prompt == prompt]
        assert len(own) == systems - 1
        out = [m.out for m in own]
        assert len(set(out)) == systems - 1
        (champion,) = set(range(systems)) - set(out)
        last = [m for m in own if champion in (m.first, m.second)]
        assert last and all(m.advanced == champion for m in last)


def test_rounds_are_asked_together_and_brackets_and_places_differ_between_prompts():
    calls: list[int] = []
    played = tournament.single_elimination(8, 30, judged_by(range(8), calls=calls), seed=0)
    assert calls == [4 * 30, 2 * 30, 30]
    firsts = [frozenset((m.first, m.second)) for m in played[:120]]
    assert len(set(firsts)) > 20
    assert 0.3 < np.mean([m.first < m.second for m in played]) < 0.7
    assert all(m.advanced == 7 for m in played[-30:])  # who is best in truth wins under a perfect judge


def test_ties_and_missing_verdicts_advance_somebody_by_a_draw_and_stay_what_they_are():
    played = tournament.single_elimination(6, 200, lambda pairs: [0.5] * len(pairs), seed=0)
    assert len(played) == 1000 and {m.share for m in played} == {0.5}
    assert 0.4 < np.mean([m.advanced == m.first for m in played]) < 0.6
    silent = tournament.single_elimination(3, 10, lambda pairs: [None] * len(pairs), seed=0)
    assert len(silent) == 20 and all(np.isnan(m.share) for m in silent)
    with pytest.raises(TruelineError, match="None of 20 matches has a verdict"):
        tournament.as_matches(silent, ["a", "b", "c"])


def log_of(played, names):
    return {
        "first_K": [names[m.first] for m in played],
        "second_K": [names[m.second] for m in played],
        "share_K": [m.share for m in played],
        "clusters": [m.prompt for m in played],
        "advanced_K": [names[m.advanced] for m in played],
    }


def test_the_measure_rates_a_log_of_tournaments_and_refuses_another():
    played = tournament.single_elimination(5, 60, judged_by(range(5), 0.8), seed=0)
    log = log_of(played, NAMES)
    found = varco_arena(**log, resamples=50)
    assert np.mean([r.value for r in found]) == pytest.approx(1000)
    assert found[0].unit == "Elo points" and found[0].n == 60 and len(found[0].items) == 5
    assert [r.name for r in found] == [f"rating/s{i}" for i in (4, 3, 2, 1, 0)]
    with pytest.raises(TruelineError, match="prompt 0: 3 matches of 5 systems"):
        varco_arena(**{k: v[1:] for k, v in sorted_by_prompt(log).items()})
    log["advanced_K"][0] = "nobody"
    with pytest.raises(TruelineError, match="match 0: 'nobody' went on"):
        varco_arena(**log)


def sorted_by_prompt(log):
    order = np.argsort(log["clusters"], kind="stable")
    return {k: [v[i] for i in order] for k, v in log.items()}


def test_round_robins_and_anchors_meet_whom_they_should():
    everyone = tournament.round_robin(4, 3, judged_by(range(4)))
    assert sorted((m.prompt, *sorted((m.first, m.second))) for m in everyone) == [
        (p, a, b) for p in range(3) for a, b in combinations(range(4), 2)
    ]
    against = tournament.anchored(4, 3, judged_by(range(4)), anchor=2)
    assert len(against) == 9 and all(2 in (m.first, m.second) for m in against)


@pytest.mark.parametrize("place", range(6))
def test_a_newcomer_is_placed_by_a_binary_search(place):
    skill = [5.0, 4.0, 3.0, 2.0, 1.0, 5.5 - place]
    played = tournament.insertion(5, [0, 1, 2, 3, 4], 2, judged_by(skill))
    assert len(played) <= 2 * 3 and all(5 in (m.first, m.second) for m in played)
    for prompt in range(2):
        lost_to = {m.advanced for m in played if m.prompt == prompt} - {5}
        beaten = {m.out for m in played if m.prompt == prompt} - {5}
        # Whoever stands just above and just below was met: the place is settled.
        assert max(lost_to, default=-1) == place - 1 and min(beaten, default=5) == place


@pytest.mark.slow
def test_a_tournament_ranks_better_than_an_anchor_with_fewer_calls():
    def medians(prompts, accuracy, trials=40):
        found = {"tournament": [], "anchor": []}
        for seed in range(trials):
            rng = np.random.default_rng(seed)
            elo = np.append(rng.normal(1000, 80, size=20), 900.0)

            def compare(pairings, rng=rng, elo=elo):
                a, b = (np.array([p[i] for p in pairings]) for i in (1, 2))
                better = rng.random(len(a)) < 1 / (1 + 10 ** ((elo[b] - elo[a]) / 400))
                return np.where(rng.random(len(a)) < accuracy, better, ~better).astype(float).tolist()

            bracket = tournament.single_elimination(20, prompts, compare, seed=seed)
            anchor = tournament.anchored(21, prompts, compare, anchor=20, seed=seed)
            assert len(bracket) == 19 * prompts < len(anchor) == 20 * prompts
            rated = rate(tournament.as_matches(bracket, NAMES), "elo", ridge=1e-3, resamples=0)
            wins = np.zeros(20)
            for m in anchor:
                wins[m.first if m.second == 20 else m.second] += m.advanced != 20
            found["tournament"].append(spearmanr(rated.rating_M, elo[:20]).statistic)
            found["anchor"].append(spearmanr(wins, elo[:20]).statistic)
        return {k: np.median(v) for k, v in found.items()}

    hard, easy = medians(50, 0.8), medians(150, 1.0)
    assert hard["tournament"] > hard["anchor"] + 0.04
    assert easy["tournament"] > easy["anchor"] > 0.85


# ---- AlpacaEval ------------------------------------------------------------------------------------------------------


@needs_data
def test_ratings_on_alpacaeval_are_the_published_order():
    """All systems meet one baseline, so that a strength is the log-odds of the published win rate."""
    import pandas as pd

    rows = pd.read_csv(DATA / "alpacaeval2_preferences.csv.gz").dropna(subset=["preference"])
    published = pd.read_csv(DATA / "alpacaeval2_leaderboard_published.csv", index_col=0).win_rate / 100
    found = ratings(
        rows.generator_2.tolist(), ["baseline"] * len(rows), (rows.preference - 1).tolist(),
        rows.instruction_id.tolist(), resamples=0,
    )  # fmt: skip
    named = by_name(found)
    assert len(named) == 36 and found[0].n == 805
    systems = [name for name in named if name != "baseline"]
    assert systems == sorted(systems, key=lambda name: -published[name])
    for name in systems:
        assert named[name] - named["baseline"] == pytest.approx(logit(published[name]), abs=1e-5)


@needs_data
@pytest.mark.slow
def test_comparing_alpacaevals_systems_with_each_other_keeps_the_published_order_nearly():
    import pandas as pd

    rows = pd.read_csv(DATA / "alpacaeval2_preferences.csv.gz")
    published = pd.read_csv(DATA / "alpacaeval2_leaderboard_published.csv", index_col=0).win_rate
    some = sorted(rows.generator_2.unique())[:8]
    rows = rows[rows.generator_2.isin(some)]
    for method in ("expected_wins", "bradley_terry", "trueskill"):
        found = by_name(aggregated_ratings(
            rows.preference.tolist(), rows.generator_2.tolist(), rows.instruction_id.tolist(), method=method, resamples=0
        ))  # fmt: skip
        assert spearmanr([found[s] for s in some], [published[s] for s in some]).statistic > 0.9


# ---- bad input -------------------------------------------------------------------------------------------------------

PLAIN = (["a", "b"], ["b", "a"], [1.0, 1.0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ratings(["a"], ["a"], [1.0]), "Match 0: 'a' meets itself"),
        (lambda: ratings(["a", "a"], ["b", "b"], [1.0, 1.7]), "Match 1: the share of the first system is 1.7.*AlpacaEval"),
        (lambda: ratings(["a"], ["b", "c"], [1.0]), "1 first, 2 second, 1 share"),
        (lambda: ratings([], [], []), "at least one match"),
        (lambda: ratings(*PLAIN, method="glicko"), "no rating method 'glicko'"),
        (lambda: ratings(*PLAIN, method="trueskill", ridge=0.1), "ridge is 0.1 with trueskill"),
        (lambda: ratings(*PLAIN, shuffles=3), "shuffles is 3 with bradley_terry"),
        (lambda: ratings(*PLAIN, ridge=-1.0), "ridge is -1"),
        (lambda: ratings(*PLAIN, resamples=1), "resamples is 1"),
        (lambda: ratings(["a", "b"], ["b", "a"], [0.7, 1.0], method="davidson"), "match 0 has the share 0.7"),
        (lambda: ratings(["a", "b"], ["b", "a"], [0.5, 0.5], method="davidson"), "every match is a tie"),
        (lambda: aggregated_ratings([1.0, 2.0], ["a", "a"], [0, 0]), "Row 1: 'a' has a score for '0' already"),
        (lambda: aggregated_ratings([1.0], ["a"], [0]), "No prompt has scores of two systems"),
        (lambda: aggregated_ratings([1.0], ["a", "b"], [0]), "2 system"),
        (lambda: aggregated_ratings([1.0, np.nan], ["a", "b"], [0, 0], method="mean"), "b has no score at all"),
        (lambda: aggregated_ratings([1.0, 2.0], ["a", "b"], [0, 0], method="mean", ridge=1.0), "no effect on a mean"),
        (lambda: tournament.single_elimination(1, 3, lambda p: []), "found 1, expected 2"),
        (lambda: tournament.single_elimination(3, 3, lambda p: []), "0 verdicts for 3 matches"),
        (lambda: tournament.insertion(0, [0, 1], 3, lambda p: []), "must be new"),
        (lambda: trueskill(Matches.of(*PLAIN), draw_probability=0.0), "draw_probability is 0"),
    ],
)  # fmt: skip
def test_wrong_input_names_its_place(call, says):
    with pytest.raises(TruelineError, match=says):
        call()
