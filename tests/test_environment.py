"""The embedded interface under hostile and random use."""
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from vlm_agent.core import ActionError, image_hash
from vlm_agent.environment import TOY_TASKS, ActionSpace, ScreenEnv, make_toy


@pytest.mark.parametrize("spec", TOY_TASKS)
def test_gymnasium_is_content(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("error"); warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(make_toy(spec))


@pytest.mark.parametrize("spec", TOY_TASKS)
def test_every_oracle_earns_its_reward_from_any_state(spec):
    "Also after the agent has wandered about: the oracle looks at the state, it does not recite."
    env, rng, won = make_toy(spec), random.Random(spec), 0
    for seed in range(200):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(0 if env.one_click else rng.randrange(6)):
            if env.running: env.step(env.action_space.sample())
        if not env.running: continue
        for _ in range(60):
            action = env.oracle()
            assert action in env.action_space
            _, reward, terminated, *_ = env.step(action)
            if terminated: break
        assert reward == 1.0, seed
        won += 1
    assert won > 150


@pytest.mark.parametrize("spec", TOY_TASKS)
def test_random_actions_never_break_it(spec):
    env = make_toy(spec)
    env.action_space = ActionSpace(env.size, kinds=("click", "double_click", "right_click", "move", "drag", "scroll", "type", "key", "wait", "goto", "back", "answer", "done"), seed=0)
    env.reset(seed=0)
    for i in range(500):
        o, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert o in env.observation_space and reward in (0.0, 1.0) and ("success" in info) == terminated
        if terminated: env.reset(seed=i)


def test_one_click_decides():
    env = make_toy("toy/click-button"); env.reset(seed=0)
    b = env.widgets[0].box
    for x, y, hit in ((b[0], b[1], 1), (b[2], b[3], 1), (b[0] - 1, b[1], 0), (b[2], b[3] + 1, 0)):
        env.reset(seed=0)
        assert env.step({"type": "click", "x": x, "y": y})[1:3] == (hit, True)
    env.reset(seed=0)
    assert env.step({"type": "right_click", "x": b[0], "y": b[1]})[2] is False


def test_a_wrong_action_changes_nothing():
    env = make_toy("toy/login"); o, _ = env.reset(seed=0)
    for bad in ({"type": "click", "x": 161, "y": 0}, {"type": "type"}, {"type": "clik"}, "click", None):
        with pytest.raises(ActionError): env.step(bad)
    assert env.steps == 0 and (env.step({"type": "move", "x": 1, "y": 1})[0]["screenshot"] == o["screenshot"]).all()


def test_the_wrong_answer_is_a_failure():
    env = make_toy("toy/dialog"); env.reset(seed=0)
    env.step(env.oracle())
    wrong = next(w for w in env.answers if w.text != env.answer)
    _, reward, over, _, info = env.step({"type": "click", "x": wrong.centre[0], "y": wrong.centre[1]})
    assert (reward, over, info["success"]) == (0.0, True, False)


def test_steps_are_limited_where_a_limit_is_set():
    env = make_toy("toy/login"); env.max_steps = 2; env.reset(seed=0)
    assert env.step({"type": "wait", "ms": 1})[2:4] == (False, False)
    assert env.step({"type": "wait", "ms": 1})[2:4] == (False, True)
    with pytest.raises(ResetNeeded): env.step({"type": "wait", "ms": 1})


def test_an_environment_that_fails_wants_a_reset():
    class Broken(ScreenEnv):
        def begin(self, seed): return np.zeros((5, 5, 3), np.uint8), {}
        def act(self, action): raise OSError("the disk is full")
    env = Broken("broken", (5, 5)); env.reset(seed=0)
    with pytest.raises(OSError): env.step({"type": "wait", "ms": 1})
    with pytest.raises(ResetNeeded): env.step({"type": "wait", "ms": 1})


def test_pixels_are_the_same_in_another_process():
    code = "from vlm_agent.environment import *; from vlm_agent.core import image_hash; print(*[image_hash(make_toy(t).reset(seed=9)[0]['screenshot']) for t in TOY_TASKS])"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there == [image_hash(make_toy(t).reset(seed=9)[0]["screenshot"]) for t in TOY_TASKS]


def test_a_reset_without_a_seed_is_another_episode():
    env = make_toy("toy/click-button")
    assert len({env.reset()[1]["seed"] for _ in range(20)}) == 20
    env.reset(seed=5); a = env.reset()[1]["seed"]; env.reset(seed=5)
    assert env.reset()[1]["seed"] == a  # and a seeded run of them can be repeated
