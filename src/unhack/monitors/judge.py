"""judge: a language model that reads the prompt and the rollout, over any OpenAI-compatible endpoint.

A question without a usable answer never passes in silence: it is counted under its reason, and the rollout is masked
out of the step (`arm.endpoint.on_failure = "mask"`) or gets `arm.endpoint.neutral_score`. What is asked is in
`judge_prompt.py`, how in `judge_client.py`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unhack.adapters.svd_cache import cache_folder
from unhack.config import ArmConfig
from unhack.monitors import judge_prompt
from unhack.monitors.base import Monitor, Reading
from unhack.monitors.judge_client import Answer, Client
from unhack.monitors.judge_prompt import FORMATS, messages
from unhack.types import Rollout

REASONS = ("timeout", "refused", "unreachable", "malformed", "capped", "nonsense")
"""Why a rollout has no score; `nonsense`: the endpoint answered, but not in the form that was asked for."""


class LanguageJudge(Monitor):
    """Sees `prompt.text` and the completion's text. Deterministic given its cache: the same text is asked once."""

    name = "judge"
    uses = frozenset({"endpoint"})
    needs = {  # noqa: RUF012
        "endpoint.url": 'the address of an OpenAI-compatible API, "http://127.0.0.1:8000/v1" for example',
        "endpoint.model": "the name that the endpoint gives the model",
    }

    def __init__(self, config: ArmConfig, seed: int) -> None:
        super().__init__(config, seed)
        known = config.endpoint
        if not known.url.startswith(("http://", "https://")):
            raise ValueError(f"arm.endpoint.url is {known.url!r}: it must start with http:// or https://")
        if known.key_variable and not os.environ.get(known.key_variable):
            raise ValueError(f"arm.endpoint.key_variable names {known.key_variable}, which is not set: export the key")
        if known.max_total_cost is not None and known.price_in == known.price_out == 0:
            raise ValueError(
                "arm.endpoint.max_total_cost needs price_in and price_out: at 0 nothing ever costs anything"
            )
        self.client = Client(known, cache_folder().parent / "judge" if known.cache is None else Path(known.cache))

    @property
    def inputs_hash(self) -> str | None:
        """Hash of every word that the judge is told, but for the rollout's."""
        told = repr((judge_prompt.VERSION, messages("", "", self.config.endpoint.format, 1000)))
        return hashlib.sha256(told.encode()).hexdigest()

    def read(self, rollouts: Sequence[Rollout]) -> Reading:
        """Ask about each; equal texts are asked about once."""
        start_s, known = time.perf_counter(), self.config.endpoint
        questions = [messages(r.prompt.text, r.text, known.format, known.max_characters) for r in rollouts]
        answers = self.client.ask(questions)
        scores = [
            FORMATS[known.format].read(answer.text) if answer.outcome == "answered" else None for answer in answers
        ]
        unread = torch.tensor([score is None for score in scores], dtype=torch.bool)
        filled = torch.tensor([known.neutral_score if score is None else score for score in scores])
        metrics = self._metrics(answers, scores)
        masked = unread if known.on_failure == "mask" else None
        return Reading(filled.float(), time.perf_counter() - start_s, masked, metrics)

    def _metrics(self, answers: Sequence[Answer], scores: Sequence[float | None]) -> dict[str, float]:
        failed = Counter(
            "nonsense" if answer.outcome == "answered" else answer.outcome
            for answer, score in zip(answers, scores, strict=True)
            if score is None
        )
        count, client = max(1, len(answers)), self.client
        return {
            "judge/unread_frac": sum(failed.values()) / count,
            **{f"judge/{reason}_frac": failed[reason] / count for reason in REASONS},
            "judge/attempts": float(sum(answer.attempts for answer in answers)),
            "judge/cached_frac": sum(a.outcome == "answered" and a.attempts == 0 for a in answers) / count,
            "judge/spent_tokens": float(client.spent_in + client.spent_out),
            "judge/spent_cost": client.cost(client.spent_in, client.spent_out),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Tokens spent, so that the cap is of the whole run."""
        return {"spent": torch.tensor([self.client.spent_in, self.client.spent_out])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on counting."""
        self.client.spent_in, self.client.spent_out = (int(value) for value in state["spent"].tolist())
