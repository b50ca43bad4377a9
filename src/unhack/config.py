"""One frozen tree of settings: defaults here, TOML overlays and flags on top, unknown keys refused.

The resolved tree is written to `config.json` of every run, and that file is what the run uses. Reading overlays is in
`settings.py`; nothing here touches a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Which causal language model to train: `organism` (bundled), or any folder or hub id that transformers loads."""

    path: str = "organism"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class AdapterConfig:
    """The trainable part. `rank` crops the SVD (None: full); `computation` picks METHOD §1 (a) or (b)."""

    kind: Literal["spectral"] = "spectral"
    rank: int | None = None
    computation: Literal["auto", "merged", "factored"] = "auto"


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which problems are drawn and under which loopholes (ENVIRONMENT §3–4)."""

    source: Literal["organism"] = "organism"
    modes: tuple[str, ...] = ("run_tests", "sentinel", "stdout_marker", "file_marker")
    depths: tuple[int, ...] = (2,)  # operations composed in one organism task
    impossible_frac: float = 0.7  # share of training draws whose tests contradict the statement
    unhackable_frac: float = 0.0  # share of training draws replaced by mode none
    allow_hack: bool = True  # False: only the strict check pays (the clean control)


@dataclass(frozen=True)
class RewardConfig:
    """Named rewards, summed (ENVIRONMENT §4)."""

    compiles: float = 0.5
    paid: float = 3.0


@dataclass(frozen=True)
class SamplerConfig:
    """Sampling; the trainer's log-probabilities use the same temperature."""

    temperature: float = 1.0
    max_new_tokens: int = 48


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (or SGD without momentum, a mechanism control): linear warm-up, then constant or cosine to `final_lr_frac`.

    The defaults are the organism's; METHOD §5 has those of a 4B model (lr 7e-5, cosine).
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 3e-2
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 5
    schedule: Literal["cosine", "constant"] = "constant"
    final_lr_frac: float = 0.1
    clip_norm: float = 1.0  # of the main gradient, after the intervention; 0 switches it off


@dataclass(frozen=True)
class LossConfig:
    """GRPO as in METHOD §5 (Dr.GRPO by default)."""

    clip_range: float = 0.2
    kl_beta: float = 0.0
    normalize_std: bool = False
    normalize_length: bool = False
    min_reward_spread: float = 1e-4  # groups below it are skipped entirely
    micro_batch_rollouts: int = 64


@dataclass(frozen=True)
class ArmConfig:
    """One intervention. Setting a field that the named arm does not use is an error."""

    name: str = "vanilla"
    direction: str | None = None  # path of a direction artifact (.safetensors)
    site: Literal["gradient", "update"] = "update"
    sided: Literal["one", "two", "reverse"] = "two"
    overshoot: float = 1.0
    preserve_norm: bool = False
    push_profile: str | None = None  # path of an update_profile.json of a one-sided gradient run


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out problems with eval markers; counts are per mode."""

    every_steps: int = 20
    problems_per_mode: int = 16
    samples_per_problem: int = 2
    final_problems_per_mode: int = 32
    final_samples_per_problem: int = 4


@dataclass(frozen=True)
class SandboxConfig:
    """Workers that run submissions; `cpu_s` is the CPU budget of one submission."""

    workers: int = 1
    cpu_s: float = 2.0
    memory_bytes: int = 512 * 2**20
    require: Literal["any", "full"] = "any"


@dataclass(frozen=True)
class TrainConfig:
    """Everything one run depends on."""

    seed: int = 0
    steps: int = 100
    prompts_per_step: int = 8
    group_size: int = 8
    checkpoint_every_steps: int = 10
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    arm: ArmConfig = field(default_factory=ArmConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
