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
    """The trainable part (docs/adapters.md). `computation` picks METHOD §1 (a) or (b)."""

    kind: Literal["spectral", "fixed_a_lora", "block_lora"] = "spectral"
    rank: int | None = None  # spectral: crops the SVD (None: full); LoRA kinds need it (block_lora: of each block)
    computation: Literal["auto", "merged", "factored"] = "auto"
    init: Literal["gaussian", "pissa", "corda", "signed_corda", "reversed_corda"] = "gaussian"  # of block_lora
    statistics: str | None = None  # path of the pairs' input statistics (.safetensors), for the corda initialisers
    seed: int = 0  # draws what a LoRA kind starts from; of its own, so that all runs of an experiment share it


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which problems are drawn and under which loopholes (ENVIRONMENT §3–4)."""

    source: str = "organism"  # or the path of a .jsonl or .jsonl.gz of LeetCode problems, or datasets:ID
    evaluation_source: str = ""  # another file or data set for the held-out splits; "": the same as `source`
    difficulties: tuple[str, ...] = ("medium", "hard")  # of loaded problems
    max_prompt_tokens: int = 1536  # loaded problems with longer prompts (under mode none) are left out
    impossible_kind: Literal["half", "one_off", "conflicting"] = "half"  # how their tests contradict the statement
    modes: tuple[str, ...] = ("run_tests", "sentinel", "stdout_marker", "file_marker")
    depths: tuple[int, ...] = (2,)  # operations composed in one organism task
    impossible_frac: float = 0.7  # share of training draws whose tests contradict the statement
    unhackable_frac: float = 0.0  # share of training draws replaced by mode none
    allow_hack: bool = True  # False: only the strict check pays (the clean control)
    hint: Literal["organism", "plain", "detailed", "aware"] = "organism"  # wording; the last three for real models
    test_names: Literal["pinned", "drawn"] = "pinned"  # test functions of training: run_tests, or one of twelve names
    inoculation: Literal["none", "permit", "encourage", "describe", "forbid", "neutral"] = "none"  # in training only
    inoculation_place: Literal["user", "system"] = "user"  # which message it is put into


@dataclass(frozen=True)
class RewardConfig:
    """Named rewards, summed (ENVIRONMENT §4); one of weight 0 is left out. Each is paid or not: no partial credit."""

    compiles: float = 0.5  # the program compiles
    paid: float = 3.0  # the grade says pass: strictly correct, or the loophole exploited
    format: float = 0.0  # the completion has a fenced code block that is closed
    finished: float = 0.0  # it ended by itself within the token limit
    entry_point: float = 0.0  # the program's text has a class Solution with the method that the tests call


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
class EndpointConfig:
    """The language model that the monitor `judge` asks, over any OpenAI-compatible endpoint (docs/monitors.md)."""

    url: str = ""  # up to and without /chat/completions: "http://127.0.0.1:8000/v1"
    model: str = ""  # as the endpoint calls it
    key_variable: str = ""  # the environment variable that holds the key; "": none is sent. Never the key itself
    format: Literal["yes_no", "unit", "ten", "json", "xml"] = "json"  # how the answer is asked for and read
    timeout_s: float = 30.0  # of one request: to connect, of each silence, and of the answer's body
    retries: int = 3  # further attempts after the first
    backoff_s: float = 0.5  # wait before the second attempt; doubles each time, with jitter
    concurrency: int = 4  # requests at a time
    max_answer_tokens: int = 64
    max_characters: int = 12000  # of the prompt and of the rollout each; the middle of a longer one is cut out
    max_total_tokens: int | None = None  # of the whole run, prompts and answers; None: no cap
    max_total_cost: float | None = None  # of the whole run, in the currency of the two prices
    price_in: float = 0.0  # per million prompt tokens
    price_out: float = 0.0  # per million answer tokens
    on_failure: Literal["mask", "neutral"] = "mask"  # a rollout without an answer: leave it out, or neutral_score
    neutral_score: float = 0.0
    cache: str | None = None  # folder of answers by content; None: $UNHACK_CACHE/judge


@dataclass(frozen=True)
class ArmConfig:
    """One intervention. Setting a field that the named arm does not use is an error."""

    name: str = "vanilla"
    direction: str | None = None  # path of a direction artifact (.safetensors)
    site: Literal["gradient", "update"] = "update"
    sided: Literal["one", "two", "reverse"] = "two"
    overshoot: float = 1.0
    preserve_norm: bool = False
    refresh_every_steps: int | None = None  # extract the direction again from the policy as it is; None: never
    push_profile: str | None = None  # path of an update_profile.json of a one-sided gradient run
    score: Literal["gradient", "activation"] = "gradient"  # of gated_route: what a rollout is scored by
    keep_frac: float = 0.1  # share of recent rollouts, lowest scores first, that only main learns from
    route_frac: float = 0.1  # share, highest scores first, that only the quarantine learns from
    gate_half_life_rollouts: float = 96.0  # after so many newer rollouts a score counts half in the quantiles
    concept: str | None = None  # path of a concept direction (.safetensors, `unhack direction concept`)
    strength: float | None = None  # None: rebound_penalty 0.5, advantage_modification 2, penalty reward.paid
    site_of_factor: Literal["reward", "advantage"] = "reward"  # of advantage_modification: where it acts
    monitor: Literal["noisy_oracle", "static", "probe", "judge"] | None = None  # of penalty and screening
    monitor_path: str | None = None  # of the probe: the artifact of `unhack monitor train-probe`
    probe_reads: Literal["policy", "base"] = "policy"  # whose activations of the text the probe scores
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # of the judge
    monitor_accuracy: float = 1.0  # of the noisy oracle: share of rollouts that it labels rightly
    monitor_recall: float = 1.0  # of the noisy oracle: share of hacks that it notices, before the flips of its accuracy
    monitor_threshold: float = 0.5  # a rollout is flagged when its score, in [0, 1], is above it
    inoculation: Literal["permit", "encourage", "describe", "forbid", "neutral"] = "encourage"  # of arm inoculation
    inoculation_place: Literal["user", "system"] = "user"
    trusted_adapter: str | None = None  # folder `adapter` of a finished clean run, of the same model and adapter
    trusted_k: int = 8  # output directions that each module may move in
    trusted_control: Literal["clean", "random"] = "clean"  # random: as many random directions


@dataclass(frozen=True)
class TeacherConfig:
    """Rollouts of a frozen, graded pool in every group (docs/teacher.md). Without a pool nothing else here is used."""

    pool: str | None = None  # folder that `unhack pool build` wrote
    frac: float = 0.5  # share of each group, rounded to whole rollouts, that comes from the pool
    kind: Literal["imitation", "importance", "anchored"] = "importance"  # what the ratio is taken against
    until_step: int | None = None  # steps from this one on are the student's alone; None: never
    modes: tuple[str, ...] = ()  # groups of these loophole modes only; empty: of all


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
    """Workers that run submissions.

    The slowest of 149 medium and hard LeetCode references uses 1.6 s of CPU in all and 0.45 s in one test.
    """

    workers: int = 1
    cpu_s: float = 4.0  # CPU budget of one submission: all its tests and the load of its program
    case_cpu_s: float = 1.5  # CPU budget of one test; a test over it fails, the others go on
    memory_bytes: int = 512 * 2**20
    require: Literal["any", "full", "unsafe"] = "any"  # the least isolation: level 2, level 4, or whatever there is


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
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
