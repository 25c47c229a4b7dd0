"""What the runner's notebook tells badly: generated worlds, a real model in the loop, a real server that dies, hanging environments, memory."""
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vlm_agent.core import ActionError, Prediction, Task, Trajectory, TrajectoryFile, trajectory_json
from vlm_agent.decoder import ActionDecoder
from vlm_agent.runner import ModelPolicy, OraclePolicy, PolicyError, RunError, TaskRunner, VoidError, episode, random_policy, record_demonstrations, stream_of
from vlm_agent.server import connect, make_env, start_server


class World:
    "A scripted environment: the seed says how long an episode is, which steps throw, which refuse, and what the rewards are."
    spec_name = "world"
    def __init__(self, slow=0.0): self.slow, self.attempts = slow, {}
    @property
    def unwrapped(self): return self
    def look(self): return dict(screenshot=np.full((4, 4, 3), (self.seed * 7 + self.at) % 251, np.uint8), goal=f"world {self.seed}")
    def reset(self, seed=None):
        rng = random.Random(seed); self.seed, self.at = seed, 0
        self.length, self.fault, self.refused, self.win = rng.randint(1, 8), rng.choice([None, None, 0, 1, 2]), rng.choice([None, 1, 2]), rng.random() < 0.5
        time.sleep(self.slow * rng.random())
        if self.fault == 0: raise ConnectionError("no page")
        return self.look(), {"url": f"world://{seed}"}
    def step(self, action):
        time.sleep(self.slow * random.random())  # how long it takes is nobody's business
        self.at += 1
        if self.fault == self.at: raise RuntimeError("crashed")
        if self.refused == self.at: raise ActionError("nothing there")
        over = self.at >= self.length
        return self.look(), float(over and self.win), over, False, {}


def says_its_stream(observations): return [Prediction("unreadable" if o.stream % 11 == 0 else f"click({o.stream % 4}, {len(o.history) % 4})") for o in observations]
def lines(trajectories): return [trajectory_json(t) for t in trajectories]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=12, unique=True), k=st.integers(1, 3), slots=st.integers(2, 16), max_steps=st.integers(1, 9), retries=st.integers(0, 2))
def test_any_number_of_slots_gives_the_same_trajectories(seeds, k, slots, max_steps, retries):
    runs = [TaskRunner(says_its_stream, [World() for _ in range(n)], max_steps=max_steps, max_retries=retries, max_void=1.0) for n in (1, slots)]
    try: one = runs[0].collect(seeds, k=k)
    except VoidError as e: assert str(e).startswith("the environments fail always"); return  # many faults in a row: with more slots more are allowed
    many = runs[1].collect(seeds, k=k)
    assert lines(one) == lines(many)
    assert [(t.task.seed, t.sample) for t in many] == [(s, j) for s in seeds for j in range(k)]
    for t in many:
        assert t.outcome == "void" or t.error == ""
        assert len(t) <= max_steps and t.reward == sum(s.reward for s in t.steps)
        assert all((s.action is None) == s.error.startswith("not read") for s in t.steps)


def test_the_clock_does_not_matter():
    fast, slow = ([World(slow=s) for _ in range(8)] for s in (0, 0.01))
    seeds = range(30)
    assert lines(TaskRunner(says_its_stream, fast, max_void=1).collect(seeds)) == lines(TaskRunner(says_its_stream, slow, max_void=1).collect(seeds))


class Counting(World):
    at_once = most = 0
    lock = threading.Lock()
    def step(self, action):
        with Counting.lock: Counting.at_once += 1; Counting.most = max(Counting.most, Counting.at_once)
        time.sleep(0.02)
        with Counting.lock: Counting.at_once -= 1
        return super().step(action)


def test_environments_work_at_the_same_time():
    TaskRunner(says_its_stream, [Counting() for _ in range(8)], max_void=1).collect(range(16))
    assert Counting.most >= 6


def test_slots_are_refilled_before_the_policy_is_asked():
    class Long(World):
        def reset(self, seed=None): self.seed, self.at, self.left = seed, 0, random.Random(seed).randint(1, 8); return self.look(), {}
        def step(self, action): self.left -= 1; return self.look(), 0.0, self.left == 0, False, {}
    asked = []
    def policy(observations): asked.append(len(observations)); return [Prediction("wait(1)") for _ in observations]
    runner = TaskRunner(policy, [Long() for _ in range(8)]); runner.collect(range(300))
    steps = sum(random.Random(s).randint(1, 8) for s in range(300))
    assert sum(asked) == steps and asked == sorted(asked, reverse=True)  # full until the queue is empty, and then only falling
    assert runner.stats["asked"] / runner.stats["ticks"] / 8 >= 0.95


def test_resets_that_fail_are_refilled_before_the_policy_is_asked():
    class Bad(World):
        def reset(self, seed=None):
            if seed % 2: raise OSError("no")
            return self._good(seed)
        def _good(self, seed): self.seed, self.at, self.length, self.fault, self.refused, self.win = seed, 0, 1, None, None, True; return self.look(), {}
    asked = []
    def policy(observations): asked.append(len(observations)); return [Prediction("wait(1)") for _ in observations]
    done = TaskRunner(policy, [Bad() for _ in range(4)], max_retries=0, max_void=0.6).collect(range(16))
    assert asked == [4, 4] and [t.outcome for t in done] == ["success", "void"] * 8


def test_retries_are_bounded_and_told():
    class Dead(World):
        calls = itertools.count()
        def reset(self, seed=None): next(Dead.calls); raise ConnectionError("gone")
    t = TaskRunner(says_its_stream, Dead(), max_retries=5).run()
    assert next(Dead.calls) == 6 and t.outcome == "void" and t.metadata["void_attempts"] == ["reset: ConnectionError: gone"] * 5
    with pytest.raises(VoidError, match="max_void=20%.*reset: ConnectionError: gone") as e: TaskRunner(says_its_stream, [World(), Dead()], max_retries=0).collect([Task("world", s) for s in range(40)])
    assert all(isinstance(t, Trajectory) for t in e.value.trajectories)


def test_one_start_state_that_always_fails_does_not_stop_the_round():
    class Bad(World):
        def reset(self, seed=None):
            if seed == 3: raise OSError("this one crashes the page")
            self.seed, self.at, self.length, self.fault, self.refused, self.win = seed, 0, 1, None, None, True; return self.look(), {}
    done = TaskRunner(says_its_stream, Bad(), max_retries=5).collect(range(20), k=8)
    assert [t.outcome for t in done].count("void") == 8 and {t.task.seed for t in done if t.outcome == "void"} == {3}


def test_a_retry_is_the_episode_that_would_have_been():
    class Once(World):
        "Each start state fails at its first attempt."
        def reset(self, seed=None):
            obs, info = self._plain(seed); self.fault = 1 if self.attempts.setdefault(seed, 0) == 0 else None; self.attempts[seed] += 1
            return obs, info
        def _plain(self, seed): self.seed, self.at, self.length, self.fault, self.refused, self.win = seed, 0, 1 + seed % 3, None, None, True; return self.look(), {}
    class Never(Once):
        def reset(self, seed=None): return self._plain(seed)
    once, never = (TaskRunner(says_its_stream, c()).collect(range(10)) for c in (Once, Never))
    for t in once: assert len(t.metadata.pop("void_attempts")) == 1
    assert lines(once) == lines(never)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -2, 1.5, "1", None, [1], np.float32("nan")])
def test_a_reward_that_is_none_makes_the_episode_void(reward):
    class Odd(World):
        def step(self, action): return self.look(), reward, True, False, {}
        def reset(self, seed=None): self.seed, self.at = 1, 0; return self.look(), {}
    t = TaskRunner(says_its_stream, Odd(), max_retries=0).run()
    if reward == "1": assert t.reward == 1.0  # a number, if oddly written
    else: assert t.outcome == "void" and t.reward == 0 and ("reward" in t.error or "float" in t.error)


@pytest.mark.parametrize("over, truncated, info, reward, expected", [
    (True, False, {}, 1.0, "success"), (True, False, {}, 0.4, "failure"), (False, True, {}, 1.0, "timeout"), (True, False, {"success": False}, 1.0, "failure"),
    (True, False, {"success": True}, 0.0, "success"), (False, True, {"success": True}, 0.0, "success"), (True, True, {}, 0.5, "success"), (False, False, {"success": True}, 0.0, "timeout")])
def test_the_outcome(over, truncated, info, reward, expected):
    class Ends(World):
        def reset(self, seed=None): self.seed, self.at = 1, 0; return self.look(), {}
        def step(self, action): return self.look(), reward, over, truncated, info
    assert TaskRunner(lambda obs: [Prediction("wait(1)") for _ in obs], Ends(), max_steps=1).run().outcome == expected


@pytest.mark.parametrize("bad", [{}, {"screenshot": None, "goal": ""}, {"screenshot": np.zeros((4, 4)), "goal": ""}, None])
def test_an_observation_that_is_none_makes_the_episode_void(bad):
    class Odd(World):
        def reset(self, seed=None): return bad, {}
    assert TaskRunner(says_its_stream, Odd(), max_retries=0).run().outcome == "void"


def test_a_policy_that_breaks_loses_nothing(tmp_path):
    file, asked = TrajectoryFile(tmp_path), itertools.count()
    def breaks(observations):
        if next(asked) == 5: raise KeyError("mine")
        return says_its_stream(observations)
    with pytest.raises(PolicyError, match="4 observations and raised KeyError: 'mine'; .* are finished") as e:
        TaskRunner(breaks, [World() for _ in range(4)], max_void=1).collect(range(100), on_trajectory=file.append)
    assert len(e.value.trajectories) > 3 and sorted(t.id for t in file) == sorted(t.id for t in e.value.trajectories)
    assert isinstance(e.value.__cause__, KeyError)


def test_an_interrupt_passes_through_and_the_finished_are_on_disk(tmp_path):
    file, asked = TrajectoryFile(tmp_path), itertools.count()
    def stopped(observations):
        if next(asked) == 5: raise KeyboardInterrupt
        return says_its_stream(observations)
    with pytest.raises(KeyboardInterrupt): TaskRunner(stopped, [World() for _ in range(4)], max_void=1).collect(range(100), on_trajectory=file.append)
    assert len(file) > 3


@pytest.mark.parametrize("said, match", [([], "2 observations and returned 0 predictions"), ([Prediction("a")] * 3, "2 observations and returned 3 predictions"),
                                         (None, "returned NoneType"), (Prediction("a"), "returned Prediction"), (["a", "b"], "returned str among")])
def test_a_policy_that_answers_nonsense(said, match):
    with pytest.raises(PolicyError, match=match): TaskRunner(lambda obs: said, [make_env("toy/click-button") for _ in range(2)]).collect([1, 2])


def test_a_mistake_inside_an_episode_is_raised_not_swallowed():
    class Decoder(ActionDecoder):
        def decode(self, *a, **k): raise AssertionError("a bug")
    def policy(obs): return [Prediction("click(1, 1)") for _ in obs]
    policy.decoder = Decoder()
    with pytest.raises(AssertionError, match="a bug"): TaskRunner(policy, make_env("toy/click-button")).run()


def test_hanging_environments_do_not_keep_the_process(tmp_path):
    "One hangs for ever: the others do the work, and the interpreter ends."
    code = """
import sys, time; sys.path.insert(0, %r)
from test_task_runner import World, says_its_stream
from vlm_agent.runner import TaskRunner
class Hangs(World):
    def reset(self, seed=None): time.sleep(10_000)
class Fine(World):
    def reset(self, seed=None): obs, info = (self.__dict__.update(seed=seed, at=0, length=1, fault=None, refused=None, win=True), (self.look(), {}))[1]; return obs, info
runner = TaskRunner(says_its_stream, [Hangs(), Fine(), Fine()], env_deadline=0.3)
print([t.outcome for t in runner.collect(range(9))])
print([t.outcome for t in runner.collect(range(2))])  # and again, without it
try: TaskRunner(says_its_stream, Hangs(), env_deadline=0.1).run()
except Exception as e: print(e)
""" % os.path.dirname(__file__)
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines()[:2] == [str(["success"] * 9), str(["success"] * 2)] and "no environment is left" in r.stdout


def test_threads_end_with_the_round():
    before, runner = threading.active_count(), TaskRunner(says_its_stream, [World() for _ in range(16)], max_void=1)
    for _ in range(3): runner.collect(range(8))
    with pytest.raises(RunError): TaskRunner(lambda o: 1 / 0, [World() for _ in range(16)], max_void=1).collect(range(8))
    time.sleep(0.2)
    assert threading.active_count() < before + 8  # of 64 that there were


def test_environments_of_several_tasks_each_take_their_own():
    envs = [make_env(f"toy/{n}") for n in ("click-button", "login", "click-button")]
    tasks = [Task(f"toy/{n}", s) for s in range(4) for n in ("login", "click-button")]
    found = TaskRunner(OraclePolicy(), envs).collect(tasks)
    assert [t.task for t in found] == tasks and all(t.success for t in found)
    with pytest.raises(ValueError, match="no environment for toy/nothing; there are toy/click-button, toy/login"): TaskRunner(OraclePolicy(), envs).collect([Task("toy/nothing", 1)])


def test_a_goal_of_ones_own_and_seeds_in_turn():
    runner = TaskRunner(random_policy(), "toy/click-button")
    a, b = runner.run("Press it."), runner.run()
    assert (a.goal, a.task.seed, b.task.seed) == ("Press it.", 0, 1) and b.goal == "Click the button."


def test_streams_differ_by_everything_that_names_a_decision():
    def streams(task, **k):
        e = episode(make_env("toy/click-button"), task, ActionDecoder("text"), **k); o = e.send(None); return o.stream, e.send(Prediction("?")).stream
    base = streams(Task("a", 1))
    others = [streams(t, **k) for t, k in ((Task("b", 1), {}), (Task("a", 2), {}), (Task("a", 1, "x"), {}), (Task("a", 1), dict(sample=1)), (Task("a", 1), dict(round=1)), (Task("a", 1), dict(seed=1)))]
    assert len({s for pair in [base, *others] for s in pair}) == 14 and all(0 <= s < 2**63 for pair in others for s in pair)
    code = "from vlm_agent.runner import stream_of; print(stream_of(3, 'toy/x', None))"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}).stdout) == stream_of(3, "toy/x", None)


@pytest.fixture(scope="module")
def tiny():
    import torch
    from vlm_agent import VLMWrapper
    torch.set_num_threads(1)
    return VLMWrapper("tiny:qwen2_vl", temperature=1.0, max_new_tokens=8)


def test_a_models_samples_do_not_depend_on_slots(tiny):
    "The real model: its answers come from each decision's own stream; 1 and 12 slots say the same, token for token."
    tiny.version = 41
    runs = [TaskRunner(tiny, [make_env("toy/login") for _ in range(n)], max_steps=3, history=1).collect(range(4), k=3) for n in (1, 12)]
    assert lines(runs[0]) == lines(runs[1])
    for t in runs[1]:
        for s in t.steps: assert s.prediction.policy == 41 and len(s.prediction.token_ids) >= 1 and s.prediction.prompt.endswith(t.goal)
    assert len({s.prediction.text for t in runs[1] for s in t.steps}) > 4
    shared = {(t.task.seed, id(t.steps[0].observation.screenshot)) for t in runs[1]}
    assert len(shared) == 4  # one screenshot for the samples of a start state


def test_samples_of_one_start_state_are_one_question(tiny, monkeypatch):
    asked, sample = [], type(tiny).sample
    def watch(self, images, prompts, k=1, **more): asked.append((len(prompts), k)); return sample(self, images, prompts, k=k, **more)
    monkeypatch.setattr(type(tiny), "sample", watch)
    TaskRunner(tiny, [make_env("toy/click-button") for _ in range(8)], max_steps=1).collect(range(4), k=4)
    assert asked == [(2, 4), (2, 4)]
    asked.clear()
    a = TaskRunner(ModelPolicy(tiny, greedy=True), [make_env("toy/click-button") for _ in range(8)], max_steps=1).collect(range(2), k=4)
    assert asked == [(2, 1)] and len({t.steps[0].prediction.text for t in a[:4]}) == 1


def test_demonstrations_hold_what_the_model_will_be_given(tiny):
    env = make_env("toy/login")
    policy = ModelPolicy(tiny, history=2)
    shown = record_demonstrations(env, range(5), policy)
    assert [t.success for t in shown] == [True] * 5 and shown[0].round == -1
    for t in shown:
        for i, s in enumerate(t.steps):
            o = s.observation
            assert s.prediction.prompt == policy.prompt(o) and s.prediction.images == tuple(p.image for p in policy.pictures(o)) and s.prediction.token_ids is None
            assert ActionDecoder("text", grid=8).decode(s.prediction.text, o.size) == s.action


def test_a_server_that_dies_is_void_and_a_new_one_is_taken_up(tmp_path):
    "The real thing: the server is killed in mid-round; what had ended is kept, the rest is void, and the error says so."
    server = start_server("toy/login")
    envs = [connect(server.url, timeout=5) for _ in range(4)]
    asked = itertools.count()
    def kills(observations):
        if next(asked) == 6: server.close()
        return [Prediction("wait(1)") for _ in observations]
    try:
        file = TrajectoryFile(tmp_path)
        with pytest.raises(VoidError, match="void") as e: TaskRunner(kills, envs, max_steps=4, max_retries=0).collect(range(40), on_trajectory=file.append)
        outcomes = [t.outcome for t in file]
        assert outcomes.count("timeout") == 4 and outcomes.count("void") == len(outcomes) - 4 and {t.outcome for t in e.value.trajectories} == {"timeout", "void"}
    finally:
        for env in envs: env.close()
        server.close()


def test_trajectories_of_another_schema_are_refused(tmp_path):
    TrajectoryFile(tmp_path).append(*TaskRunner(random_policy(), "toy/click-button").collect(range(2)))
    path = tmp_path/"trajectories.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + json.dumps({**json.loads(second), "schema": 2}) + "\n")
    it = iter(TrajectoryFile(tmp_path)); next(it)
    with pytest.raises(ValueError, match="trajectory schema 2; this version reads 1"): next(it)


def test_what_a_runner_opens_is_closed_with_it():
    with start_server("toy/click-button", max_sessions=2) as s:
        assert [TaskRunner(random_policy(), s.url, max_steps=1).run(seed=i).outcome for i in range(5)] == ["failure"] * 5
