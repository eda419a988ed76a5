"""Rollouts from vLLM servers, against a stand-in that speaks the real protocol: what is sampled, by which weights."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.generation import Sampling, VLLMEngine
from alignment.generation.server import ServedWeights, request_of
from alignment.ppo.config import PPOConfig
from alignment.ppo.options import VLLMOptions
from alignment.ppo.trainer import PPOTrainer
from launch.config import load_config
from launch.errors import UserError
from launch.exchange import Backoff
from tests.alignment.ppo_support import prompt_rows, run_updates
from tests.support import free_port, save_adapter, save_policy
from tests.vllm_server import VLLMServer

SAMPLING = Sampling(6, 0.7, eos_id=1, pad_id=0)
PROMPTS = [[3 + (i * 7 + j) % 20 for j in range(1 + i % 5)] for i in range(12)]
QUICK = Backoff(0, "test", 0.01, 0.05)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """What the servers are started with: not the policy."""
    return save_policy(tmp_path_factory.mktemp("other") / "model", seed=9)


@pytest.fixture(scope="module")
def policy(folders):
    return AutoModelForCausalLM.from_pretrained(folders[0]).eval()


@pytest.fixture
def server(other):
    with VLLMServer(other) as server:
        yield server


def engine_for(servers, folder, **options):
    end = time.monotonic() + 60

    def beat():
        assert time.monotonic() < end, "a server is still waited for"

    options = {"backoff": QUICK, "beat": beat, "timeout_s": 20.0, "concurrency": 4, **options}
    return VLLMEngine([s if isinstance(s, str) else s.url for s in servers], folder, **options)


def sample(engine, prompts=PROMPTS, indices=None):
    return engine.generate(prompts, SAMPLING, 0, "test", 2, indices or range(len(prompts)))


def ready(servers, folder, policy, **options):
    engine = engine_for(servers, folder, **options)
    engine.refresh(policy)
    return engine


# ---------------------------------------------------------------------------------------------- samples


@torch.no_grad()
def test_tokens_and_log_probabilities_are_the_policys_at_the_temperature(server, policy, tmp_path):
    completions = sample(ready([server], tmp_path, policy))
    assert {len(c.token_ids) for c in completions} > {6}  # some are cut off, some ended
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = completion.token_ids
        logits = policy(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-5)
        assert 1 not in tokens[:-1] and (tokens[-1] == 1 or len(tokens) == 6)
    assert any(5 in c.token_ids[:-1] for c in completions)  # an EOS of the generation_config, which is none of ours


def test_a_sample_belongs_to_its_index_whoever_draws_it(server, other, policy, tmp_path):
    expected = sample(ready([server], tmp_path / "one", policy))
    with VLLMServer(other) as second:
        asked = len(server.requests)
        engine = ready([server, second], tmp_path / "two", policy, concurrency=9)
        assert sample(engine) == expected
        assert len(second.requests) == 6 and len(server.requests) == asked + 6
    alone = ready([server], tmp_path / "three", policy)
    assert [*sample(alone, PROMPTS[6:], list(range(6, 12))), *sample(alone, PROMPTS[:6])] == expected[6:] + expected[:6]
    assert sample(alone, indices=list(range(20, 32))) != expected


def test_a_request_is_by_temperature_alone(server, policy, tmp_path):
    sample(ready([server], tmp_path, policy), PROMPTS[:1], [7])
    (body,) = server.requests
    assert body == request_of("tiny", PROMPTS[0], SAMPLING, body["seed"])
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert neutral.items() <= body.items() and body["temperature"] == 0.7 and body["stop_token_ids"] == [1]


def test_the_bearer_token_is_sent(other, policy, tmp_path):
    with VLLMServer(other, api_key="open") as server:
        assert len(sample(ready([server], tmp_path, policy, token="open"), PROMPTS[:2])) == 2
        with pytest.raises(UserError, match=r"vllm.url: .*/v1/models: answered with status 401 \(Unauthorized\)"):
            engine_for([server], tmp_path).connect()


# ---------------------------------------------------------------------------------------------- weights


def test_new_weights_are_loaded_once_and_the_cache_of_the_old_ones_is_dropped(server, policy, tmp_path):
    engine = ready([server], tmp_path, policy)
    first = sample(engine)
    changed = AutoModelForCausalLM.from_pretrained(server.folder)
    engine.refresh(changed)
    assert server.version == engine.weights.version and len(server.loaded) == 2 and server.resets == [True, True]
    second = sample(engine)
    assert second != first
    assert sample(ready([server], tmp_path / "again", changed)) == second
    assert not VLLMEngine([server.url], tmp_path).servers[0].load(ServedWeights(tmp_path, server.version, 23))
    assert len(server.loaded) == 3


def test_the_folder_holds_two_whole_generations(server, policy, tmp_path):
    (tmp_path / "weights-of-a-run-that-was-killed").mkdir()
    (tmp_path / "partial-1").mkdir()
    (tmp_path / "something else").mkdir()
    engine = engine_for([server], tmp_path)
    for _ in range(4):
        engine.refresh(policy)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and names[0] == "something else" and server.loaded[-1].name == names[2]
    for name in names[1:]:
        held = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        assert all(torch.equal(value, held[key]) for key, value in policy.state_dict().items())
    engine.remove_weights()
    assert [path.name for path in tmp_path.iterdir()] == ["something else"]


def test_weights_that_were_not_written_to_the_end_have_no_name(server, policy, tmp_path):
    """Killed at any moment of a write, it leaves a `partial-` folder, which no server is told of."""

    def save(folder):
        (folder).mkdir(parents=True)
        names.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    engine, names = ready([server], tmp_path, policy), []
    broken = SimpleNamespace(save_pretrained=save, config=policy.config)
    with pytest.raises(KeyboardInterrupt):
        engine.refresh(broken)
    assert sorted(name.partition("-")[0] for name in names) == ["partial", "weights"] and len(server.loaded) == 1


def test_weights_wait_for_requests_to_those_before(server, policy, tmp_path):
    """A server drops its cache only when nothing runs; till then it is asked again, and the weights are not loaded again."""
    engine = ready([server], tmp_path, policy)
    begun, release = threading.Event(), threading.Event()
    server.before = lambda number: (begun.set(), release.wait(20))
    straggler = threading.Thread(target=lambda: server.completions(request_of("tiny", [3], SAMPLING, 0)))
    straggler.start()
    assert begun.wait(20)
    push = threading.Thread(target=lambda: engine.refresh(policy))
    push.start()
    end = time.monotonic() + 20
    while server.resets.count(False) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert server.resets.count(False) >= 2
    assert engine.weights.version not in (server.version, "default") and len(server.loaded) == 2
    release.set()
    push.join(20), straggler.join(20)
    assert server.version == engine.weights.version


def test_b20_a_server_that_was_started_again_is_given_the_weights_again(server, policy, tmp_path):
    """In the middle of a rollout: it comes back with the model it was started with, and no token of that one is taken."""
    expected = sample(ready([server], tmp_path / "a", policy))
    said = []
    engine = ready([server], tmp_path / "b", policy, say=said.append, concurrency=2)
    start = len(server.requests)
    server.before = lambda number: server.restart() if number == start + 5 else None
    assert sample(engine) == expected
    assert server.version == engine.weights.version and server.loaded[-1] == engine.weights.folder
    assert [line for line in said if "was started again, and has the policy's weights again" in line]


def test_a_server_that_comes_back_otherwise_is_refused(server, policy, tmp_path):
    engine = ready([server], tmp_path, policy)
    server.logprobs_mode = "raw_logprobs"
    server.restart()
    with pytest.raises(UserError, match="start the server with --logprobs-mode processed_logprobs"):
        sample(engine)
    with pytest.raises(UserError, match="start the server with --logprobs-mode processed_logprobs"):
        engine.refresh(policy)


def test_a_server_that_is_away_is_waited_for_and_said_to_be(server, policy, tmp_path):
    expected = sample(ready([server], tmp_path / "a", policy))
    said = []
    engine = ready([server], tmp_path / "b", policy, say=said.append)
    server.stop()
    threading.Timer(0.5, server.start).start()
    assert sample(engine) == expected
    assert "has not answered since" in said[0] and server.url in said[0] and "answers again" in " ".join(said)


def test_the_others_answer_for_a_server_that_is_away(server, other, policy, tmp_path):
    expected = sample(ready([server], tmp_path / "a", policy))
    with VLLMServer(other) as second:
        engine = ready([server, second], tmp_path / "b", policy)
        second.stop()
        assert sample(engine) == expected


def test_weights_wait_for_a_server_that_is_away(server, policy, tmp_path):
    said = []
    engine = ready([server], tmp_path, policy, say=said.append)
    server.stop()
    threading.Timer(0.5, server.start).start()
    engine.refresh(policy)
    assert server.version == engine.weights.version and "has not answered since" in said[0]


# ---------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"logprobs_mode": "raw_logprobs"},
            r"are raw_logprobs, .*start the server with --logprobs-mode processed_logprobs",
        ),
        ({"dev_mode": False}, r"has no /server_info; start vLLM .* with VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(other, tmp_path, settings, message):
    with VLLMServer(other, **settings) as server, pytest.raises(UserError, match=message):
        engine_for([server], tmp_path).connect()


def test_what_keeps_a_run_from_its_start(other, policy, tmp_path):
    with pytest.raises(
        UserError, match=r"vllm.url: http://127.0.0.1:\d+ does not answer \(.*refused\); start the server"
    ):
        engine_for([f"http://127.0.0.1:{free_port()}"], tmp_path).connect()
    with VLLMServer(other, context=10) as server:
        engine = ready([server], tmp_path, policy)
        with pytest.raises(
            UserError, match=r"takes 10 tokens, .* up to 11; start the server with a larger --max-model"
        ):
            sample(engine)
        server.collective_rpc = lambda body: VLLMServer.collective_rpc(
            server, {**body, "kwargs": {"weights_path": "/x"}}
        )
        with pytest.raises(UserError, match=r"vllm.weights_folder: .* cannot load .*status 500: Cannot find any"):
            ready([server], tmp_path / "b", policy)


def changed(**values):
    return lambda choice: {**choice, **values}


def longer(choice):
    return {**choice, "token_ids": [*choice["token_ids"], 3]}


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (changed(token_ids=None), "has no token_ids; use vLLM 0.33"),
        (changed(token_ids=[]), "the completion is empty"),
        (changed(token_ids=[3, 23]), "token 23 is not in the policy's vocabulary of 23"),
        (changed(token_ids=["x"]), "token 'x' is not in the policy's vocabulary"),
        (changed(logprobs=None), "has no token_logprobs"),
        (longer, r"log-probabilities for \d tokens"),
        (changed(token_ids=[3], logprobs={"token_logprobs": [None]}), "None is no log-probability"),
        (changed(token_ids=[3], logprobs={"token_logprobs": [2.5]}), "2.5 is no log-probability; start"),
        (changed(weight_versions=None), "does not tell its weight_versions"),
        (
            changed(token_ids=[3], logprobs={"token_logprobs": [-1]}, finish_reason="length"),
            "1 of 6 tokens without the EOS",
        ),
        (changed(token_ids=[1, 3], logprobs={"token_logprobs": [-1, -1]}), "goes on after its EOS"),
        (changed(token_ids=[3] * 7, logprobs={"token_logprobs": [-1.0] * 7}), "has 7 tokens, 6 were asked for"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_run(server, policy, tmp_path, twist, message):
    engine = ready([server], tmp_path, policy)
    server.twist = twist
    with pytest.raises(UserError, match=message) as caught:
        sample(engine, PROMPTS[:2])
    assert server.url in str(caught.value)


def test_an_aborted_request_is_asked_again(server, policy, tmp_path):
    expected = sample(ready([server], tmp_path / "a", policy), PROMPTS[:1])
    engine = ready([server], tmp_path / "b", policy)
    aborted = [{"finish_reason": "abort", "token_ids": [], "logprobs": {"token_logprobs": []}, "weight_versions": []}]
    server.twist = lambda choice: {**choice, **aborted.pop()} if aborted else choice
    assert sample(engine, PROMPTS[:1]) == expected and not aborted


def test_the_config_is_checked(tmp_path):
    def problem(*words):
        with pytest.raises(UserError) as caught:
            load_config(PPOConfig, ["--policy", "p", "--reward", "r", "--prompts", "x", *words])
        return str(caught.value)

    assert "vllm.url: is missing" in problem("--vllm.weights_folder", "w")
    assert "vllm.weights_folder: is missing" in problem("--vllm.url", "http://a:1")
    assert "vllm.url: 'a:1' is no address" in problem("--vllm.url", "a:1", "--vllm.weights_folder", "w")
    assert "is given twice" in problem("--vllm.url", "http://a:1,http://a:1", "--vllm.weights_folder", "w")
    both = ["--vllm.url", "http://a:1", "--vllm.weights_folder", "w"]
    assert "vllm.concurrency: 0 is below 1" in problem(*both, "--vllm.concurrency", "0")


# ---------------------------------------------------------------------------------------------- PPO


@pytest.fixture
def make_served(make, server, tmp_path):
    """`make`, with rollouts from `server`."""

    def build(**changes):
        options = VLLMOptions(url=[server.url], weights_folder=str(tmp_path / "weights"))
        plain = make(vllm=options, **changes)
        served = engine_for([server], options.weights_folder)
        return PPOTrainer(
            plain.config,
            plain.roles,
            plain.scorer.source,
            prompt_rows(),
            plain.runtime,
            held_out=changes.get("held_out"),
            served=served,
        )

    return build


def served_state(server):
    return dict(server.model.state_dict())


def policy_state(trainer):
    return {name: value.detach().clone() for name, value in trainer.roles.policy_weights()}


def same_weights(a, b):
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.mark.parametrize("lora", [False, True])
def test_an_update_learns_from_the_servers_samples(make_served, server, folders, tmp_path, lora):
    changes = {}
    if lora:
        from alignment.ppo.config import SharedLora

        adapter = save_adapter(tmp_path / "adapter", folders[0])
        changes = dict(policy=str(adapter), lora=SharedLora(rank=4), critic_from="trunk")
    trainer = make_served(learning_rate=0.01, **changes)
    for _ in range(2):
        before = policy_state(trainer)
        rollout = trainer.advantages(trainer.score(trainer.next_rollout()))
        assert same_weights(before, served_state(server))
        engine, own = (rollout.flat(t, range(8)) for t in (rollout.engine_logprobs_BT, rollout.logprobs_BT))
        assert torch.allclose(engine, own, atol=1e-4)
        assert rollout.logged["importance/mean"] == pytest.approx(1, abs=1e-4)
        assert rollout.logged["importance/max"] == pytest.approx(1, abs=1e-3)
        trainer.update(rollout)
        assert not same_weights(before, policy_state(trainer))


def test_rollouts_ahead_come_from_the_weights_before(make_served, server):
    trainer = make_served(rollouts_ahead=1, learning_rate=0.01, updates=3)
    history = run_updates(trainer)
    assert history[0]["importance/max"] == pytest.approx(1, abs=1e-3)
    assert history[2]["importance/max"] > 1.01
    assert len(server.loaded) == 3 and len(server.requests) == 3 * 8


def test_the_same_run_twice(make_served, server):
    assert run_updates(make_served()) == run_updates(make_served())


def test_an_evaluation_samples_on_the_servers_too(make_served, server):
    from alignment.ppo.evaluation import HeldOut
    from alignment.ppo.options import EvaluationOptions

    held_out = HeldOut(prompt_rows()[:5])
    trainer = make_served(held_out=held_out, evaluation=EvaluationOptions(every=3, prompts="-"), learning_rate=0.01)
    run_updates(trainer)
    assert [row["step"] for row in trainer.history.rows] == [0, 3] and trainer.history.rows[0]["n"] == 5
    assert len(server.requests) == 3 * 8 + 2 * 5
    assert trainer.history.rows[0]["kl_k1"] == pytest.approx(0, abs=1e-5) and trainer.history.rows[1]["kl_k1"] != 0


def test_a_context_that_is_too_short_is_told_before_anything_is_sampled(make_served, server):
    server.context = 8
    with pytest.raises(UserError, match="takes 8 tokens"):
        make_served()


def test_other_weights_than_those_that_were_given_are_never_learned_from(server, policy, tmp_path):
    """Whatever a server says: tokens under two versions, or under that of another run, are asked for again."""
    engine = ready([server], tmp_path, policy)
    expected = sample(engine, PROMPTS[:1])
    weights = engine.weights
    spans = [[{"version": "default", "start": 0, "end": 1}, {"version": weights.version, "start": 1, "end": 2}]]
    server.twist = lambda choice: {**choice, "weight_versions": spans.pop()} if spans else choice
    assert sample(engine, PROMPTS[:1]) == expected and not spans
    server.version = "of another run"
    server._load(server.folder)
    assert sample(engine, PROMPTS[:1]) == expected
    assert isinstance(weights, ServedWeights) and server.version == weights.version
