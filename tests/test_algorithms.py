"""Laws of the algorithms, on generated rounds: what may be learned from, with what weight, and that every trajectory is told why."""
import math
import random
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vlm_agent.core import Observation, Prediction, Step, Task, Trajectory
from vlm_agent.rejection_sampling import AdvantageWeighted, Algorithm, BestOfK, FilteredBehaviourCloning, RejectionSampling

SHOT = Observation(np.zeros((2, 2, 3), np.uint8), "Click.")
CHECK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def episode(task=0, acts=("a",), reward=1.0, sample=0, round=1, void=False, prompt=None):
    "One trajectory; an act is a letter (a click of its own), None (could not be read) or '!' (was refused)."
    steps = [Step(SHOT, Prediction("?" if a is None else a), None if a is None else dict(type="click", x=ord(a), y=1), 0.0, "not read" if a is None else "refused" if a == "!" else "") for a in acts]
    return Trajectory(Task("t", task, prompt), steps, "void" if void else "success" if reward >= 0.5 else "failure", reward, round=round, sample=sample)


acts = st.lists(st.sampled_from(["a", "b", "c", None, "!"]), min_size=0, max_size=4).map(tuple)
rewards = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.0, float("nan"), float("inf")])

@st.composite
def rounds(draw, round=1, most=24):
    "The trajectories of one round; ids are unique as in a run."
    drawn = draw(st.lists(st.tuples(st.integers(0, 4), acts, rewards, st.booleans() | st.just(False)), max_size=most))
    return [episode(task, a, r, i, round, void) for i, (task, a, r, void) in enumerate(drawn)]

keywords = st.fixed_dictionaries(dict(
    reward_threshold=st.sampled_from([0.25, 0.5, 1.0]), distinct=st.booleans(), max_per_task=st.sampled_from([None, 1, 2]), drop_all_solved=st.booleans(), balance=st.booleans(),
    replay_rounds=st.sampled_from([None, 0, 1]), keep_demonstrations=st.booleans(), start_from_base=st.booleans(), credit=st.sampled_from(["all", "last", "discounted"]),
    drop_invalid=st.booleans(), max_invalid=st.sampled_from([None, 0, 1]), max_length=st.sampled_from([None, 2])))
algorithms = st.one_of(keywords.map(lambda k: RejectionSampling(**k)), st.just(FilteredBehaviourCloning()), st.just(BestOfK()), st.sampled_from([0.0, 0.5, 1.0]).map(AdvantageWeighted))


def told(selection): return [(s.trajectory.id, s.step, s.weight) for s in selection.samples], selection.decisions, selection.earlier
def of(selection, trajectories): ids = {id(t) for t in trajectories}; return [s for s in selection.samples if id(s.trajectory) in ids]


@CHECK
@given(algorithms, rounds(), rounds(round=0), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(algorithm, now, before, rng):
    mixed, earlier = now[:], before[:]
    rng.shuffle(mixed); rng.shuffle(earlier)
    assert told(algorithm.select(now, before)) == told(algorithm.select(mixed, earlier))


@CHECK
@given(algorithms, rounds(), rounds(round=0))
def test_every_trajectory_of_the_round_is_told_why(algorithm, now, before):
    selection = algorithm.select(now, before)
    assert sorted(d.id for d in selection.decisions) == sorted(t.id for t in now)
    learned = defaultdict(float)
    for s in selection.samples: learned[s.trajectory.id] += s.weight
    for d in [*selection.decisions, *selection.earlier]:
        assert d.reason and d.kept == (d.id in learned)
        assert d.weight == pytest.approx(learned.get(d.id, 0))
    assert sum(selection.summary().values()) == len(now) + sum(d.kept for d in selection.earlier)


@CHECK
@given(keywords, rounds(), rounds(round=0), rounds(round=-1))
def test_nothing_below_the_threshold_nothing_void_nothing_invalid(k, now, before, shown):
    selection = RejectionSampling(**k).select(now, before, shown)
    for s in selection.samples:
        t, step = s.trajectory, s.trajectory.steps[s.step]
        assert t.outcome != "void" and math.isfinite(t.reward) and t.reward >= k["reward_threshold"]
        assert math.isfinite(s.weight) and s.weight > 0
        if k["drop_invalid"]: assert step.action is not None and not step.error
        if t.round >= 0:
            assert k["max_length"] is None or len(t) <= k["max_length"]
            assert k["max_invalid"] is None or sum(x.action is None or bool(x.error) for x in t.steps) <= k["max_invalid"]


@CHECK
@given(algorithms, rounds(), rounds(round=0))
def test_weights_are_one_on_average_and_demonstrations_weigh_one(algorithm, now, before):
    shown = [episode(7, ("a", "b"), 1.0, i, -1) for i in range(3)]
    selection = algorithm.select(now, before, shown)
    acted, demonstrated = of(selection, [*now, *before]), of(selection, shown)
    if acted: assert sum(abs(s.weight) for s in acted) == pytest.approx(len(acted))
    assert [s.weight for s in demonstrated] == [1.0] * (6 if algorithm.keep_demonstrations else 0)


@CHECK
@given(keywords, rounds())
def test_distinct_and_at_most_n_per_task(k, now):
    kept = defaultdict(list)
    for s in RejectionSampling(**k).select(now).samples:
        if s.trajectory not in kept[s.trajectory.group]: kept[s.trajectory.group].append(s.trajectory)
    for group in kept.values():
        if k["distinct"]: assert len({str([s.action for s in t.steps]) for t in group}) == len(group)
        if k["max_per_task"]: assert len(group) <= k["max_per_task"]


def test_of_equal_successes_the_newest_and_then_the_shortest_stays():
    old, new, long = episode(acts="a", round=0), episode(acts="a", round=1, sample=1), episode(acts="bb", round=1, sample=2)
    assert [s.trajectory for s in RejectionSampling().select([new], [old]).samples] == [new]
    assert RejectionSampling(max_per_task=1).select([long, new]).samples[0].trajectory is new


def test_a_start_state_that_all_solved_teaches_nothing_new():
    solved, half = [episode(1, a, 1.0, i) for i, a in enumerate("abc")], [episode(2, a, r, i) for i, (a, r) in enumerate([("a", 1.0), ("b", 0.0)])]
    selection = RejectionSampling(drop_all_solved=True).select([*solved, *half])
    assert [s.trajectory for s in selection.samples] == half[:1]
    assert selection.summary()["every sample of the task succeeded"] == 3
    once = [episode(3, "a", 1.0)]  # one sample says nothing about how hard it is
    assert RejectionSampling(drop_all_solved=True).select(once).samples[0].trajectory is once[0]
    crashed = [*half, episode(2, "c", 0.0, 2, void=True)]  # what was void was not tried
    assert len(RejectionSampling(drop_all_solved=True).select([*solved, episode(1, "d", 0.0, 3, void=True), *crashed]).samples) == 1


def test_how_hard_a_start_state_is_says_the_newest_round_that_tried_it():
    before = [episode(1, "a", 1.0, 0, 0), episode(1, "b", 0.0, 1, 0), episode(1, "c", 1.0, 0, 1), episode(1, "d", 1.0, 1, 1)]
    assert RejectionSampling(drop_all_solved=True).select([episode(2, "a", 0.0, 0, 2)], before).samples == []  # half of it at first, all of it since


def test_balance_gives_hard_start_states_their_due():
    hard = [episode(1, a, float(i == 0), i) for i, a in enumerate("abcd")]  # one of four
    easy = [episode(2, a, float(i != 0), i) for i, a in enumerate("abcd")]  # three of four
    weight = defaultdict(float)
    for s in RejectionSampling(balance=True).select([*hard, *easy]).samples: weight[s.trajectory.task.seed] += s.weight
    assert weight[1] / weight[2] == pytest.approx((0.75 + 0.05) / (0.25 + 0.05))  # whatever the number of successes


def test_rounds_are_counted_back_from_the_newest():
    rounds = [episode(i, "a", 1.0, 0, i) for i in range(5)]
    def learned(n): return sorted(s.trajectory.round for s in RejectionSampling(replay_rounds=n).select(rounds[4:], rounds[:4]).samples)
    assert (learned(None), learned(0), learned(2)) == ([0, 1, 2, 3, 4], [4], [2, 3, 4])
    assert [d.reason for d in RejectionSampling(replay_rounds=1).select(rounds[4:], rounds[:4]).earlier] == ["replayed success"]


def test_replay_is_read_once_and_one_at_a_time():
    alive, most = set(), 0
    def stream():
        nonlocal most
        for i in range(200):
            t = episode(i, "a", 0.0, 0, 0)
            alive.add(t.id); yield t
            most = max(most, len(alive)); alive.discard(t.id)
    RejectionSampling().select([episode(0, "a", 1.0)], stream())
    assert most == 1


def test_credit_for_several_steps():
    t = episode(1, ("a", "b", None, "c"), 1.0)
    def shares(**k): return {s.step: s.weight for s in RejectionSampling(**k).select([t]).samples}
    assert shares() == {0: 1, 1: 1, 3: 1} and shares(credit="last") == {3: 1} and set(shares(drop_invalid=False)) == {0, 1, 2, 3}
    d = shares(credit="discounted", discount=0.5)
    assert d[0] / d[3] == pytest.approx(0.125) and d[1] / d[3] == pytest.approx(0.25) and sum(d.values()) == pytest.approx(3)


def test_idle_steps_are_no_example():
    t, other = episode(1, ("a", "b", "c", "d"), 1.0), Observation(np.ones((2, 2, 3), np.uint8), "Click.")
    for i in (1, 2): t.steps[i].observation = other  # "a" changed the screen, "b" did not, "c" changed it back
    def learned(**k): return [s.step for s in RejectionSampling(**k).select([t]).samples]
    assert learned() == [0, 1, 2, 3]  # no last look: nothing is known
    t.final = SHOT  # "d" changed nothing either, but it ended the episode
    assert learned() == [0, 2, 3] and learned(drop_idle=False) == [0, 1, 2, 3] and learned(credit="last") == [3]
    t.steps[0].observation = other
    assert learned() == [2, 3] and abs(sum(s.weight for s in RejectionSampling().select([t]).samples) - 2) < 1e-9


def test_best_of_k_takes_one_and_only_if_it_is_better():
    group = [episode(1, "a", 0.2, 0), episode(1, "bb", 0.9, 1), episode(1, "c", 0.9, 2)]
    assert [s.trajectory.sample for s in BestOfK().select([*group, episode(2, "a", 0.3, 0), episode(2, "b", 0.3, 1)]).samples] == [2]  # the shorter of equals; task 2 has no best


@CHECK
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=2, max_size=8), st.sampled_from([0.0, 0.5, 1.0]))
def test_advantages_are_of_the_group(rewards, negative):
    group = [episode(1, chr(97 + i), r, i) for i, r in enumerate(rewards)]
    weight = {s.trajectory.sample: s.weight for s in AdvantageWeighted(negative).select(group).samples}
    if len(set(rewards)) == 1: assert not weight; return
    mean = sum(rewards) / len(rewards)
    assert all((weight.get(i, 0) > 0) == (r > mean) and (weight.get(i, 0) < 0) == (r < mean and negative > 0) for i, r in enumerate(rewards))
    if negative == 1: assert sum(weight.values()) == pytest.approx(0, abs=1e-9)


def test_filtered_behaviour_cloning_keeps_copies():
    copies = [episode(1, "a", 1.0, i) for i in range(5)]
    assert len(FilteredBehaviourCloning().select(copies).samples) == 5 and len(RejectionSampling().select(copies).samples) == 1


@CHECK
@given(algorithms, rounds())
def test_a_round_without_successes_is_a_result(algorithm, now):
    hopeless = [episode(t.task.seed, [s.prediction.text if s.action else None for s in t.steps], 0.0, i, 1, t.outcome == "void") for i, t in enumerate(now)]
    selection = algorithm.select(hopeless)
    assert selection.samples == [] and len(selection.decisions) == len(hopeless) and all(d.weight == 0 for d in selection.decisions)
    assert "samples" in repr(selection) and "<table>" in selection._repr_html_()


def test_prompts_make_start_states_of_their_own():
    two = [episode(1, "a", 1.0, 0, prompt="Click."), episode(1, "a", 1.0, 1, prompt="Press.")]
    assert len(RejectionSampling().select(two).samples) == 2


def test_a_new_algorithm_is_two_methods():
    class Shortest(Algorithm):
        def fault(self, t): return super().fault(t) or (None if t.success else "no success")
        def judge(self, group, solved, tried): return [(1.0, "shortest") if t is group[0] else (0.0, "a longer way") for t in group]
    selection = Shortest().select([episode(1, "aa", 1.0, 0), episode(1, "b", 1.0, 1), episode(1, "c", 0.0, 2)])
    assert selection.summary() == {"shortest": 1, "no success": 1, "a longer way": 1}


def test_selecting_needs_no_torch():
    code = "import sys; from vlm_agent.rejection_sampling import RejectionSampling; RejectionSampling().select([]); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_what_could_not_be_read_counts_where_samples_are_compared():
    group = [episode(1, "a", 1.0, 0), *(episode(1, (None,), 0.0, i) for i in range(1, 8))]
    for algorithm in (BestOfK(), AdvantageWeighted()): assert [s.trajectory.sample for s in algorithm.select(group).samples] == [0]
    weight = {s.trajectory.sample: s.weight for s in AdvantageWeighted().select([*group[:7], episode(1, "b", 0.0, 7)]).samples}
    assert weight[0] == pytest.approx(-7 * weight[7])  # the mean is that of all eight


@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9, 1/3, 2/3])
@pytest.mark.parametrize("k", [3, 7, 8, 16])
def test_equal_returns_are_equal(reward, k):
    group = [episode(1, chr(97 + i), reward, i) for i in range(k)]
    for algorithm in (BestOfK(), AdvantageWeighted()): assert not algorithm.select(group).samples


def test_a_demonstration_that_succeeded_is_one_whatever_its_return():
    assert len(BestOfK().select([], demonstrations=[episode(1, "a", 0.3, round=-1), Trajectory(Task("t", 2), episode(2, "a").steps, "success", 0.3, round=-1)]).samples) == 1


def test_weights_that_are_none_and_weights_that_are_no_numbers():
    class Credit(Algorithm):
        def __init__(self, shares): self.given = shares
        def shares(self, t): return list(enumerate(self.given))
    assert Credit([0.0, 0.0]).select([episode(1, "ab")]).samples == []
    assert [s.step for s in Credit([0.0, 1.0]).select([episode(1, "ab")]).samples] == [1]
    with pytest.raises(ValueError, match="weight of step 1 is nan"): Credit([1.0, float("nan")]).select([episode(1, "ab")])


def test_a_judge_that_judges_nothing_is_told():
    class Silent(Algorithm):
        def judge(self, group, solved, tried): pass
    with pytest.raises(ValueError, match="for each of 1 trajectories, got 0"): Silent().select([episode(1)])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8])
def test_a_small_batch_sees_questions_with_several_answers_as_often(batch_size):
    from vlm_agent.training import batches
    samples, seen = [f"s{i}/0" for i in range(100)] + [f"m{i}/{j}" for i in range(25) for j in range(4)], 0
    for seed in range(20): seen += sum(x[0] == "m" for b in batches(samples, batch_size, 48 // batch_size, str(seed), 4, question=lambda s: s.split("/")[0]) for x in b)
    assert 0.4 < seen / (20 * 48) < 0.6
