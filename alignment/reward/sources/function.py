"""A Python function as a source: one number for each completion, or one for each of its tokens."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.reward.sources.protocol import Episodes, Scores, check_rewards, list_of, single, sum_tokens
from launch.errors import UserError, nearest
from launch.exchange import Beat, Say
from launch.functions import describe_fault
from launch.stopping import Stopped

BEAT_S = 1.0


class FunctionSource:
    """Calls `function(prompts=..., completions=..., **columns)`, the form of TRL's GRPO reward functions.

    Columns are those of the data rows, and prompt_ids, completion_ids and finished. A function without `**columns` is
    given those that it names. It returns a list of B numbers, or of B lists with a number for each completion token.
    `reference` and `file` say in errors what the function is called and where it stands.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        reference: str,
        file: Path,
        timeout_s: float = 3600.0,
        beat: Beat = lambda: None,
        say: Say = lambda line: None,
    ) -> None:
        """`beat` is called about once a second, in another thread, while the function works, for at most `timeout_s`; then `say`
        is told, and a watchdog that listens to `beat` takes the process for stuck."""
        self.name, self.function, self.file = name, function, file
        self.timeout_s, self.beat, self.say = timeout_s, beat, say
        self.source = f"reward {name} ({reference})"

    def score(self, episodes: Episodes) -> Scores:
        values = list_of(self._call(self._arguments(episodes)), len(episodes), self.source)
        values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        if not any(isinstance(value, (list, tuple)) for value in values):
            return single(self.name, check_rewards(values, len(episodes), self.source))
        token_rewards = [self._check_tokens(row, value, episodes) for row, value in enumerate(values)]
        total_B = sum_tokens(token_rewards)
        return Scores(total_B, {self.name: total_B}, token_rewards, rest_B=torch.zeros_like(total_B))

    def _arguments(self, episodes: Episodes) -> dict[str, Any]:
        """The keyword arguments: all columns, or those that the function names. Ours win over a row's of the same name."""
        given: dict[str, Any] = {
            **episodes.columns(),
            "prompts": list(episodes.prompts),
            "completions": list(episodes.completions),
            "prompt_ids": [list(ids) for ids in episodes.prompt_ids],
            "completion_ids": [list(ids) for ids in episodes.completion_ids],
            "finished": list(episodes.finished),
        }
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        for parameter in named:
            if parameter.default is parameter.empty and parameter.name not in given:
                raise UserError(
                    f"{self.source}: wants '{parameter.name}', which the rows lack{nearest(parameter.name, given)}; "
                    "take what the rows have, or add the column to the prompts"
                )
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return given if takes_all else {p.name: given[p.name] for p in named if p.name in given}

    def _call(self, arguments: dict[str, Any]) -> Any:
        try:
            with self._beating():
                return self.function(**arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever it raises; `sys.exit()` would end the run as if done
            raise UserError(f"{self.source}: raised {describe_fault(error, self.file)}; mend the function") from error

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        done, end = threading.Event(), time.monotonic() + self.timeout_s

        def work() -> None:
            while not done.wait(BEAT_S):
                if time.monotonic() > end:
                    advice = "mend the function, or give it a larger timeout_s if it needs longer"
                    self.say(f"{self.source}: has not returned for {self.timeout_s:g} s; {advice}")
                    return
                self.beat()

        def until_stopped() -> None:
            with contextlib.suppress(Stopped):  # whoever waits for the rewards sees that the job ends, too
                work()

        thread = threading.Thread(target=until_stopped, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _check_tokens(self, row: int, value: Any, episodes: Episodes) -> Tensor:
        """The token rewards (T_i,) of a row."""
        source, length = f"{self.source}: row {row + 1}", len(episodes.completion_ids[row])
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{source}: a single number between lists; give a number for each of its {length} tokens")
        return check_rewards(value, length, source, of="tokens")
