"""People as a judge: their recorded preferences decide the duels that they saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.records import Preference, Turns, plain_text
from evaluation.judges.duels import Duel, Verdict
from evaluation.schema import Judge as JudgeRecord

Key = tuple[str, str, str]


def ballot_key(prompt: Turns, one: Turns, other: Turns) -> Key:
    """The prompt and both answers, in the order of their texts: the same whichever is called first."""
    first, second = sorted((plain_text(one).strip(), plain_text(other).strip()))
    return plain_text(prompt).strip(), first, second


class People:
    """Judges by the majority of all records of a duel; as many one way as the other, ties counted half, is a tie."""

    sees_order = False
    budget = 2**62

    def __init__(self, preferences: Sequence[Preference], record: JudgeRecord) -> None:
        self.name, self._record = record.path, record
        self._votes: dict[Key, list[float]] = {}
        for p in preferences:
            key = ballot_key(p.prompt, p.chosen, p.rejected)
            vote = 0.5 if p.tie else float(plain_text(p.chosen).strip() == key[1])
            self._votes.setdefault(key, []).append(vote)

    def size(self, duel: Duel) -> int:
        return 1

    def check(self, duels: Sequence[Duel]) -> None:
        """It can read them all."""

    def settings(self) -> dict[str, Any]:
        return {"judge": "people", "sha256": self._record.sha256}

    def record(self) -> JudgeRecord:
        return self._record

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        """`votes` counts the records; there is no verdict on a duel that nobody judged."""
        return [self._verdict(duel) for duel in duels]

    def _verdict(self, duel: Duel) -> Verdict:
        if duel.same:
            return {"vote": 0.5, "votes": 0}
        key = ballot_key(duel.prompt, duel.first.text, duel.second.text)
        votes = self._votes.get(key)
        if votes is None:
            return {"vote": None, "why": "nobody judged this pair", "votes": 0}
        share = sum(votes) / len(votes)
        forward = share if plain_text(duel.first.text).strip() == key[1] else 1 - share
        return {"vote": 0.5 if forward == 0.5 else float(forward > 0.5), "votes": len(votes)}
