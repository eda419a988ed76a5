"""What is done about the monitors' alarms: say so, stop in order, or roll back to a checkpoint from before the fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NoReturn

from alignment.ppo.monitors import MONITORS, Alarm
from alignment.ppo.trainer import PPOTrainer
from launch.checkpoint import CheckpointStore
from launch.errors import UserError


class Guard:
    """Acts on the alarms of a trainer whose checkpoints lie in `store`. All ranks call its methods together."""

    def __init__(self, trainer: PPOTrainer, store: CheckpointStore, say: Callable[[str], object]) -> None:
        self.trainer, self.store, self.say = trainer, store, say
        self.options = trainer.config.monitors

    def checkpoint_due(self, update: int) -> bool:
        """Whether this update's checkpoint is one that a roll-back may return to; pins the one it now would return to.

        Which those are depends on the update's number alone: checkpoints by time would make a roll-back depend on the
        machine's speed.
        """
        if not self.options.roll_back:
            return False
        sound = self.trainer.monitors.sound_until
        anchors = [step for step in self.store.steps() if self._is_anchor(step) and step <= (sound or 0)]
        self.store.pinned = max(anchors, default=None)
        return self._is_anchor(update)

    def _is_anchor(self, step: int) -> bool:
        return step % self.options.rollback_every == 0

    def act(self) -> None:
        """Warn, then stop (UserError) or roll back, as the newest alarms ask for; a stop goes before a roll-back."""
        alarms = sorted(self.trainer.alarms, key=lambda alarm: ("stop", "rollback", "warn").index(alarm.action))
        for alarm in alarms:
            if alarm.action == "warn":
                self._tell(alarm, "warned")
                self.say(alarm.sentence)
        if alarms and alarms[0].action == "stop":
            self._stop(alarms[0], "the run stops")
        if alarms and alarms[0].action == "rollback":
            self._roll_back(alarms[0])

    def resume(self) -> None:
        """After a load: what stopped the run stops it again at once, unless its threshold or action was changed."""
        self.trainer.alarms = [alarm for alarm in self.trainer.monitors.standing() if alarm.action != "warn"]
        self.act()

    def _tell(self, alarm: Alarm, done: str, **more: float) -> None:
        row = {**dataclasses.asdict(alarm), "done": done, **more}
        if row not in self.trainer.monitors.told:
            self.trainer.monitors.told.append(row)

    def _stop(self, alarm: Alarm, what: str) -> NoReturn:
        trainer, kind = self.trainer, MONITORS[alarm.monitor]
        self._tell(alarm, "stopped")
        saved = self.store.last_step == trainer.update_number > 0 or trainer.save(self.store)
        kept = f"with a checkpoint of update {trainer.update_number}" if saved else "and could not be saved"
        raise UserError(
            f"{alarm.sentence}; {what} {kept}, and there is no artefact: to go on, {'lower' if kind.below else 'raise'} "
            f"monitors.{alarm.monitor}.threshold or set monitors.{alarm.monitor}.action to warn, and run the command again"
        )

    def _roll_back(self, alarm: Alarm) -> None:
        """Load the newest anchor before the fault; the learning rates are lower from then on. Or stop, if that is no help."""
        trainer, monitors = self.trainer, self.trainer.monitors
        if monitors.rollbacks >= self.options.rollbacks:
            self._stop(alarm, f"after {monitors.rollbacks} roll-backs the run stops")
        checkpoint = self.store.latest(lambda step: step <= alarm.sound and self._is_anchor(step))
        if checkpoint is None:
            self._stop(alarm, "there is no checkpoint from before the fault, so the run stops")
        made, told = monitors.rollbacks + 1, monitors.told
        trainer.load(checkpoint)
        monitors.rollbacks, monitors.told = made, told
        self._tell(alarm, "rolled back", to=checkpoint.step, rate_factor=monitors.rate_factor)
        self.store.discard_after(checkpoint.step)
        trainer.dump.cut_back(checkpoint.step)
        trainer.save(self.store)  # else a kill from here on would lead into the fault again
        self.say(
            f"{alarm.sentence}; rolled back to update {checkpoint.step}, learning rates times {monitors.rate_factor:g}"
        )
