"""PPO from human feedback. `train` is the whole algorithm; each phase it calls can be called alone.

Shapes: B episodes of the global batch, T response tokens, N response tokens of a forward pass.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from alignment.cuda_graphs import recorder_for
from alignment.generation import DecodeGraphs, Sampling, VLLMEngine
from alignment.ppo import objectives as ppo
from alignment.ppo.ahead import Ahead
from alignment.ppo.background import in_background, wait_together
from alignment.ppo.config import PPOConfig
from alignment.ppo.contexts import check_contexts
from alignment.ppo.controllers import KLController, RewardNormaliser
from alignment.ppo.dump import RolloutDump
from alignment.ppo.estimators import EstimatorSettings, estimate_advantages
from alignment.ppo.evaluation import PURPOSE, Evaluation, HeldOut, History
from alignment.ppo.graphs import capture_passes, release_passes, width_of
from alignment.ppo.learner import Learner
from alignment.ppo.measure import Metrics, evaluation_metrics, make_samples, rollout_metrics, sequence_kl
from alignment.ppo.monitors import Alarm, Monitors
from alignment.ppo.ptx import load_ptx
from alignment.ppo.replay import Replay
from alignment.ppo.roles import Roles
from alignment.ppo.rollout import Prompt, Rollout, check_scored, follow_changes, make_rollout
from alignment.ppo.samplers import Sampler, ServedPolicy
from alignment.ppo.sampling import Sampled, Share, draw, share_of
from alignment.ppo.scoring import Scorer
from alignment.ppo.shaping import correct_importance, shape_rewards
from alignment.ppo.shared import SharedRoles
from alignment.ppo.token_passes import TokenPasses
from alignment.prompts import prompt_rows
from alignment.reward.sources.protocol import Episodes, RewardSource
from launch.checkpoint import Checkpoint, CheckpointStore
from launch.config import check_config
from launch.errors import UserError
from launch.runtime import Runtime
from launch.seeding import permutation


def _check(config: PPOConfig, source: RewardSource | None) -> None:
    """UserError for a config that no command line has looked at. What was given in Python need not be named in it."""
    given = {"prompts": config.prompts or "-"}
    if source is not None and not config.rewards:
        given["reward"] = config.reward or "-"
    try:
        check_config(dataclasses.replace(config, **given))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"PPOConfig: {error}") from None


class PPOTrainer:
    """Trains `roles.policy` on prompts: rows with `prompt_ids`, or texts. All ranks make the same calls.

    A replay (`config.replay`) needs neither a source nor prompts.
    """

    def __init__(
        self,
        config: PPOConfig,
        roles: Roles | SharedRoles,
        source: RewardSource | None,
        prompts: Sequence[Prompt | str],
        runtime: Runtime,
        sink: Callable[[int, Metrics], Any] = lambda number, metrics: None,
        held_out: HeldOut | None = None,
        served: VLLMEngine | None = None,
    ) -> None:
        """`served`: the servers of `config.vllm`, which sample in place of this process."""
        _check(config, source)
        self.config, self.roles, self.source, self.runtime, self.sink = config, roles, source, runtime, sink
        if config.batch_size % runtime.world:
            raise UserError(
                f"batch_size: {config.batch_size} is not a multiple of {runtime.world} processes; choose one that is"
            )
        tokenizer = roles.tokenizer
        if not prompts and not config.replay:
            raise UserError("PPOTrainer: there are no prompts; give at least one")
        self.prompts = self.as_rows(prompts)
        self.update_number, self.updates = 0, config.updates
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.normaliser = RewardNormaliser()
        self.sampling = Sampling(
            config.max_new_tokens, config.temperature, tokenizer.eos_token_id, tokenizer.pad_token_id
        )
        self.replay = Replay(config, tokenizer, runtime.device) if config.replay else None
        if self.replay is not None:
            self.update_number, self.updates = self.replay.begin(self.kl, self.normaliser)
        self.held_out, self.history = held_out, History()
        self.room = self.replay.room if self.replay else self._longest_episode(source)
        """Tokens of the longest episode there can be."""
        ptx = load_ptx(config, tokenizer, self.room)
        groups = roles.parameter_groups(config)
        self.learner = Learner(config, roles.module(), groups, runtime, self.sampling.pad_id, self.room, ptx)
        self.engine = self.learner.engine
        self.reference = None if self.replay else roles.place_reference(self.engine)
        self.passes = TokenPasses(self.learner, self.reference)
        self.served = served
        self.scorer = None if source is None else Scorer(source, tokenizer, runtime, config.overlap_scoring)
        self._capture_passes()
        self.graphs = DecodeGraphs(recorder_for(runtime.device) if config.cuda_graphs else None)
        self.ahead: Ahead | None = None
        self.sampler: Any = None if self.replay else self._make_sampler()
        self.dump = RolloutDump(config, tokenizer, self.room, runtime)
        self.evaluation: Evaluation | None = None
        """The newest one that `log` asked for."""
        self.monitors = Monitors(config.monitors)
        self.alarms: list[Alarm] = []
        """Of the newest update, for the sink to act on."""
        self.alive: Callable[[], Any] = lambda: None
        """Called on a rank that waits for the others' rewards."""
        self.while_waiting: Callable[[bool], Any] = lambda can_save: None
        """Called on all ranks together, about once a second, while one of them waits for rewards; may raise to end it.
        The argument: whether `save` would keep all that was done so far."""
        self.tell: Callable[[str], Any] = lambda text: None
        """Told how far an update has come, for the display; called in threads, too."""
        self.learner.tell = lambda text: self.tell(text)
        if self.replay is not None and (started := self.replay.load_start(self.engine)):
            self.monitors.load_state_dict(started["monitors"])
        self._can_save = False
        """Whether it would while something is sampled: not during an evaluation, nor of rollouts ahead, which it waits for."""

    def _capture_passes(self) -> None:
        """On a GPU, where no gradients are exchanged and no other thread uses it while this one trains."""
        config = self.config
        beside = config.rollouts_ahead or (self.scorer is not None and self.scorer.overlaps)
        alone = self.engine.wrapped is self.engine.module and not beside
        trunks = self.roles.trunks()
        if not (alone and config.cuda_graphs):
            for trunk in trunks:
                release_passes(trunk)  # those of another trainer
        elif capture_passes(trunks, self.runtime.device, config.micro_batch_size, self.room):
            self.learner.width_of = width_of

    def _longest_episode(self, source: RewardSource | None) -> int:
        """Tokens of the longest prompt with its response; refused where a role or a judge cannot read so many."""
        gold = self.held_out.gold if self.held_out else None
        rows = [*self.prompts, *self._held_out_rows()]
        check_contexts(self.roles, [source, gold], rows, self.config.max_new_tokens)
        return max((len(row["prompt_ids"]) for row in self.prompts), default=0) + self.config.max_new_tokens

    def _make_sampler(self) -> Sampler:
        sampler: Sampler
        ahead = bool(self.config.rollouts_ahead)
        if self.served is not None:
            self.served.check_room(self.room)
            roles = self.roles
            sampler = ServedPolicy(self.engine, roles.policy, roles.policy_weights, self.served, self._wait)
        else:
            sampler = self.roles.make_sampler(self.engine, ahead)
        if not ahead:
            return sampler
        self.ahead = Ahead(
            self.runtime,
            sampler,
            lambda number, model: self._draw(self.next_prompts(number), number, model),
            self._wait,
            remote=self.served is not None,
        )
        return self.ahead

    # ------------------------------------------------------------------------------------ the algorithm

    def train(self) -> None:
        """Run the remaining updates; `sink` is given the metrics of each, saves, and may raise to stop or load to go back."""
        self.begin()
        while self.update_number < self.updates:
            rollout = self.next_rollout()
            rollout = self.score(rollout)
            self.dump.write(rollout, self.update_number, self.kl, self.normaliser, self.monitors.rate_factor)
            rollout = self.advantages(rollout)
            metrics = self.update(rollout)
            self.log(rollout, metrics)

    def begin(self) -> None:
        """What comes before the first update: dumps of updates that are made again go; the start policy is evaluated."""
        self.dump.cut_back(self.update_number)
        if self.update_number == 0 and not self.history.rows and self._evaluation_due():
            self.log(None, {})

    def next_rollout(self) -> Rollout:
        """This update's rollout: sampled now, or during the update before, or read from a dump."""
        if self.replay is not None:
            return self.replay.rollout(self.update_number)
        if self.ahead is None:
            return self.rollout(self.next_prompts())
        with self._timed() as clock:
            sampled = self.ahead.take(self.update_number, self.updates)
            return self._make_rollout(sampled, clock(), ahead=True)

    def next_prompts(self, number: int | None = None) -> list[Prompt]:
        """Prompts of the next rollout (or that of update `number`): shuffled anew for each pass, none is skipped."""
        count, n = self.config.batch_size // self.config.samples_per_prompt, len(self.prompts)
        first = self.update_number if number is None else number
        numbers = range(first * count, (first + 1) * count)
        orders = {epoch: permutation(n, self.config.seed, "ppo-prompts", epoch) for epoch in {i // n for i in numbers}}
        return [self.prompts[int(orders[i // n][i % n])] for i in numbers]

    def rollout(self, prompts: Sequence[Prompt | str]) -> Rollout:
        """Sample `samples_per_prompt` responses to each prompt. Episodes are split over the ranks; this rank's are returned."""
        count, world = len(prompts) * self.config.samples_per_prompt, self.runtime.world
        if self.sampler is None:
            raise UserError("rollout: a replay samples nothing; call next_rollout(), or leave replay out of the config")
        if not count or count % world:
            raise UserError(
                f"rollout: {count} episodes cannot be split over {world} processes; give prompts whose number times "
                f"samples_per_prompt ({self.config.samples_per_prompt}) is a multiple of that, and at least one"
            )
        with self._timed() as clock:
            self._can_save = self.ahead is None
            model, number = self.sampler.sync(), self.update_number
            sampled = self._sample(lambda: self._draw(prompts, number, model))
            self._can_save, seconds = False, clock()
        return self._make_rollout(sampled, seconds)

    def _sample(self, work: Callable[[], Sampled]) -> Sampled:
        """What `work` samples: in this thread, or where servers sample, which may be away for long, in another one."""
        if self.served is not None:
            return self._wait(in_background(work, self.runtime, daemon=True))
        with self.runtime.autocast():
            return work()

    def _wait(self, sampling: Future[Any]) -> Any:
        """The result of a thread, on all ranks together."""
        return wait_together(sampling, self.runtime, self.alive, lambda: self.while_waiting(self._can_save))

    def _draw(self, prompts: Sequence[Prompt | str], number: int, model: Any) -> Sampled:
        """This rank's responses to the prompts of update `number`. It may run in a thread: no collective call."""
        samples, runtime = self.config.samples_per_prompt, self.runtime
        share = share_of(self.as_rows(prompts), samples, runtime.rank, runtime.world)
        early = self.scorer.begin_early() if self.scorer else None
        graphs = self.graphs if self.ahead is None else None  # those are of this thread
        return draw(model, share, self.sampling, self.config, number, early, tell=self.tell, graphs=graphs)

    def _make_rollout(self, sampled: Sampled, seconds: float, ahead: bool = False) -> Rollout:
        groups = [number // self.config.samples_per_prompt for number in sampled.share.numbers]
        logprobs = sampled.logprobs if ahead or self.served else None  # else they are the policy's own
        prompts, eos_id = sampled.share.prompts, self.sampling.eos_id
        rollout = make_rollout(prompts, sampled.responses, groups, eos_id, self.runtime, logprobs)
        rollout.early = sampled.early.scores if sampled.early else None
        rollout.seconds["rollout"] = seconds
        return rollout

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Rollout:
        """Gather the ranks' episodes; add old log-probabilities, values, reference log-probabilities and scores.

        The passes are shared out to the ranks by length; each asks its source for the rewards of its own episodes. The old
        log-probabilities come from the training forward pass, not from generation: the kernels differ, and the ratio
        would not be 1 at the first step (checklist item 11). Where nothing needs them before it, that step's own pass gives
        them (`PPOConfig.first_pass_is_old`). A rollout that has its scores (of this rank's episodes, or once it is gathered of
        all) keeps them: no source is asked. One that has all, as of a replay, is whole. Go on with what is returned: on several
        processes it is another rollout.
        """
        if rollout.scores_B is not None and self.passes.has_all(rollout):
            return rollout
        if self.reference is None:
            raise UserError("score: a replay loads no reference, so it cannot score a rollout; take next_rollout()")
        runtime = self.runtime
        with self._timed() as clock:
            follow_changes(rollout, self.sampling.eos_id, runtime)
            self._check_source(rollout)
            whole = rollout.gather(runtime)
            self.passes.read_shared(whole)
            if rollout.scores_B is None:
                self._score_episodes(rollout)
            rollout.early = None
            whole.take_scores(rollout, runtime)
        whole.seconds["score"] = clock()
        return whole

    def _check_source(self, rollout: Rollout) -> None:
        """UserError for a rollout without scores that no source can be asked for."""
        if rollout.scores_B is None and self.scorer is None:
            raise UserError(
                "score: the trainer has no source of reward; give PPOTrainer a source, or set the rollout's scores_B"
            )
        if rollout.scores_B is None and rollout.gathered:
            raise UserError(
                "score: the rollout holds the episodes of all processes, and each asks for rewards of its own ones alone; set its "
                "scores_B, or make a new rollout"
            )

    def _score_episodes(self, rollout: Rollout) -> None:
        """Rewards of this rank's episodes from the source, by component. It may be away for long, see `while_waiting`."""
        assert self.scorer is not None
        scores = wait_together(self.scorer.start(rollout), self.runtime, self.alive, lambda: self.while_waiting(True))
        device = self.runtime.device
        rollout.scores_B = scores.last_token_B.to(device)
        rollout.components = {name: values_B.to(device) for name, values_B in scores.columns().items()}
        if scores.token_rewards is not None:
            rollout.token_scores_BT = rollout.spread(torch.cat(scores.token_rewards).to(device), range(len(rollout)))

    def advantages(self, rollout: Rollout) -> Rollout:
        """Turn scores into token rewards, advantages (whitened over the global batch) and returns."""
        config, mask_BT = self.config, rollout.mask_BT
        if rollout.scores_B is None or not self.passes.has_all(rollout):
            raise UserError("advantages: the rollout has no scores and log-probabilities; call score(rollout) before")
        check_scored(rollout, "advantages")
        rollout.rewards_BT = shape_rewards(rollout, config, self.normaliser, self.kl.coef)
        settings = EstimatorSettings(
            config.gamma, config.gae_lambda, config.value_lambda, config.length_alpha, config.group_std
        )
        groups_B = torch.tensor(rollout.groups, device=mask_BT.device)
        advantages_BT, rollout.returns_BT = estimate_advantages(
            config.estimator, rollout.rewards_BT, rollout.values_BT, mask_BT, groups_B, settings
        )
        rollout.advantages_BT = ppo.clip_symmetric(advantages_BT, config.advantage_clip)
        correct_importance(rollout, config.importance_cap)
        return rollout

    def update(self, rollout: Rollout) -> Metrics:
        """The optimizer steps on a rollout with advantages, and the step of the KL controller."""
        if rollout.advantages_BT is None:
            raise UserError("update: the rollout has no advantages; call advantages(rollout) before")
        if not self.passes.has_all(rollout):
            raise UserError(
                "update: the rollout has no old log-probabilities, or the policy has moved since they were left to the update; call "
                "score(rollout) again and advantages, or score and update each rollout before the next one"
            )
        check_scored(rollout, "update")
        if len(rollout) % self.config.minibatches:
            raise UserError(
                f"update: {len(rollout)} episodes cannot be cut into {self.config.minibatches} minibatches; give a rollout of "
                "a multiple of that, or another `minibatches`"
            )
        self.learner.rate_factor = self.replay.rate_factor if self.replay else self.monitors.rate_factor
        with self._timed() as clock:
            metrics = self.learner.update(rollout, self.update_number, self.kl.coef)
            seconds = clock()
        self._check_finite(metrics)
        metrics["kl/coef"] = self.kl.coef
        if (
            self.update_number >= self.config.critic_warmup
        ):  # before, the policy stands still, and no weight could change the KL
            self.kl.update(sequence_kl(rollout), len(rollout))
        self.update_number += 1
        rollout.seconds["update"] = seconds
        return metrics

    def log(self, rollout: Rollout | None, metrics: Metrics) -> Metrics:
        """Everything there is to say of the update that was just made (None: before the first), given to `sink`."""
        if rollout and rollout.logprobs_BT is None:
            raise UserError("log: the rollout has no log-probabilities yet; call update(rollout) before")
        metrics = {**(rollout_metrics(rollout) if rollout else {}), **metrics}
        row = None
        if self._evaluation_due():
            with self._timed() as clock:
                self.evaluation = self.evaluate()
            row = self.evaluation.row
            self.history.add(self.evaluation)
            metrics |= {**evaluation_metrics(row), "perf/evaluate_seconds": clock()}
        self.alarms = self.runtime.broadcast(self.monitors.observe(self.update_number, metrics, row))
        metrics |= self.monitors.metrics()
        self.sink(self.update_number, metrics)
        return metrics

    def _check_finite(self, means: Metrics) -> None:
        """End the run on every rank (the means are global) before NaN weights push good checkpoints out."""
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"update {self.update_number + 1}: {broken[0]} is {means[broken[0]]}, so the weights are lost; start in another "
                "folder with a lower learning_rate or a higher kl_coef (the checkpoints before this update are intact)"
            )

    # ------------------------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Measure the policy on the held-out prompts, with the same random numbers each time; training is not touched.

        Each rank samples and scores its share of the prompts; numbers and intervals are those of all of them.
        """
        held_out, rows, runtime = self.held_out, self._held_out_rows(), self.runtime
        n = len(rows)
        if held_out is None or n < runtime.world:
            raise UserError(
                f"evaluation.prompts: there are {n} held-out prompts for {runtime.world} processes; give at least one for each"
            )
        mine = list(range(runtime.rank * n // runtime.world, (runtime.rank + 1) * n // runtime.world))
        share = Share([rows[i] for i in mine], mine)
        model = self.sampler.sync()
        sampled = self._sample(
            lambda: draw(model, share, self.sampling, self.config, 0, None, PURPOSE, self.tell, self.graphs)
        )
        rollout = make_rollout(share.prompts, sampled.responses, mine, self.sampling.eos_id, runtime)
        self.passes.read_own(rollout)
        episodes = Episodes.decode(self.roles.tokenizer, rollout.prompts, rollout.responses)
        judges = [self.source, held_out.gold] if held_out.gold else [self.source]
        asked = in_background(lambda: [judge.score(episodes).total_B for judge in judges], runtime, daemon=True)
        rewards = wait_together(asked, runtime, self.alive, lambda: self.while_waiting(False))
        parts = runtime.gather_objects(make_samples(rollout, episodes, *rewards))
        samples = [sample for part in parts for sample in part]
        found = self.history.evaluate(self.update_number, samples, held_out.lexicon)
        return Evaluation(found.update, samples, runtime.broadcast(found.row))

    def _evaluation_due(self) -> bool:
        """Whether to evaluate after this many updates: every so many, and after the last. A replay samples nothing."""
        every = self.config.evaluation.every
        asked = every > 0 and (self.update_number % every == 0 or self.update_number == self.config.updates)
        return asked and self.replay is None

    # ------------------------------------------------------------------------------------ state

    def save(self, store: CheckpointStore) -> bool:
        """Checkpoint everything that the next update depends on; randomness is derived from the update's number."""
        extra = {
            "update_number": self.update_number,
            "kl": self.kl.state_dict(),
            "normaliser": self.normaliser.state_dict(),
            "ahead": self.ahead.state(self.update_number) if self.ahead else None,
            "history": self.history.state_dict(),
            "monitors": self.monitors.state_dict(),
        }
        return self.engine.save(store, self.update_number, extra)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on after a checkpoint."""
        extra = self.engine.load(checkpoint)
        self.learner.moves += 1
        self.update_number = extra["update_number"]
        self.kl.load_state_dict(extra["kl"])
        self.normaliser.load_state_dict(extra["normaliser"])
        self.history.load_state_dict(extra["history"])
        self.monitors.load_state_dict(extra["monitors"])
        if self.ahead is not None:
            self.ahead.load(extra["ahead"], self.update_number, self.next_prompts(), self.config.samples_per_prompt)

    # ------------------------------------------------------------------------------------ helpers

    def as_rows(self, prompts: Sequence[Prompt | str]) -> list[Prompt]:
        """Rows with `prompt_ids`: as they are, or of texts."""
        return prompt_rows(self.roles.tokenizer, prompts, self.roles.policy.get_input_embeddings().num_embeddings)

    def _held_out_rows(self) -> list[Prompt]:
        try:
            return self.as_rows(self.held_out.rows) if self.held_out else []
        except UserError as error:
            raise UserError(f"held_out: {error}") from None

    @contextmanager
    def _timed(self) -> Iterator[Callable[[], float]]:
        """A clock that waits for the device."""
        start = time.perf_counter()

        def seconds() -> float:
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        yield seconds
