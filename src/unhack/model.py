"""Load any causal language model, and score completions without ever holding [batch, time, vocabulary] logits.

Rows are right-padded and attention is causal, so padding can never reach a position that counts: full rows need no
attention mask, and masks are made from lengths, never from token values. The head runs only at positions that predict a
completion token.

Not here: sampling (`rollout/`), adapters (`adapters/`), prompts (`prompts.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from unhack.config import ModelConfig

ORGANISM = "organism"
CHUNK_LOGITS = 2**20
"""Logits of one chunk when `chunk_tokens` is not given: 4 MB of float32, which stays in a CPU's cache."""
MIN_CHUNK_TOKENS = 256


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in eval mode with its tokenizer; `hash` is over every parameter's name and values."""

    model: PreTrainedModel
    tokenizer: Any
    hash: str


def load(config: ModelConfig) -> LoadedModel:
    """Load `config.path`: `organism` (bundled), a folder, or a hub id.

    Raises:
        ValueError: no such device or model, damaged files, no causal language model in them, or one that alters its
            logits after the head.
    """
    check_device(config.device)
    tokenizer = load_tokenizer(config)
    try:
        auto: Any = AutoModelForCausalLM  # its own annotations miss `self`
        model = auto.from_pretrained(_path(config), dtype=getattr(torch, config.dtype), attn_implementation="sdpa")
    except SafetensorError as error:
        raise ValueError(
            f"the weights of the model '{config.path}' are damaged ({error}): copy or download it again"
        ) from error
    except OSError as error:
        raise _not_loaded(config, error) from error
    model = model.to(config.device).eval().requires_grad_(False)
    check_plain_head(model)
    return LoadedModel(model, tokenizer, model_hash(model))


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of `config.path` alone. ValueError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(_path(config))
    except OSError as error:
        raise _not_loaded(config, error) from error


def _path(config: ModelConfig) -> str:
    path = str(files("unhack") / "organism" / "files") if config.path == ORGANISM else config.path
    if (config.path == ORGANISM or Path(path).exists()) and not (Path(path) / "config.json").exists():
        raise ValueError(f"{path} holds no model (config.json is missing): point model.path at a transformers folder")
    return path


def _not_loaded(config: ModelConfig, error: OSError) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(
        f"cannot load the model '{config.path}' ({reason}): give 'organism', a local folder, or the id of a model "
        "that this machine can download"
    )


def check_device(name: str) -> None:
    """Refuse a device that this machine, or this build of PyTorch, does not have.

    Raises:
        ValueError: not the name of a device, or one that is not available.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"model.device is '{name}': use cpu, cuda, cuda:N or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"model.device is '{name}', which PyTorch {torch.__version__} cannot use here: use {here}")


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and values of every parameter, in order."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer from hidden states to logits, which must be linear and without bias."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear) and head.bias is None, "the head must be a linear layer without bias"
    return head


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The part of the model under its head: tokens to hidden states."""
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def check_plain_head(model: PreTrainedModel) -> None:
    """Refuse models whose logits are not simply head(hidden): scoring would silently differ from sampling.

    Raises:
        ValueError: the logits are scaled, capped or otherwise changed after the head (Gemma 2, Cohere, Granite).
    """
    tokens = torch.arange(2, device=model.device).unsqueeze(0)
    hidden = backbone(model)(input_ids=tokens, use_cache=False).last_hidden_state
    plain = head_of(model)(hidden)
    if not torch.allclose(plain, model(input_ids=tokens, use_cache=False).logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes its logits after the head: use a model with a plain head")


class TokenLogprobs(torch.autograd.Function):
    """log softmax(h Wᵀ / temperature)[target] and its entropy, [N] each, for a frozen head W [V, hidden].

    d logp_n / d h_n = (W[target_n] − Σ_v p_nv W_v) / temperature depends on position n alone, so the forward makes it
    [N, hidden] chunk by chunk while the probabilities exist; the backward is one scaling, nothing is recomputed, and
    no more than `chunk` × V logits exist at a time.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        count = hidden.shape[0]
        logprobs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        jacobian = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(hidden[part], weight.T).float().div_(temperature)
            at_target = logits.gather(1, targets[part, None]).squeeze(1)
            normaliser = torch.logsumexp(logits, 1)
            logprobs[part] = at_target - normaliser
            probs = torch.softmax(logits, 1)
            entropy[part] = normaliser - torch.linalg.vecdot(probs, logits)
            if jacobian is not None:
                expected = torch.mm(probs.to(weight.dtype), weight)
                jacobian[part] = (weight[targets[part]] - expected).div_(temperature)
        if jacobian is not None:
            ctx.save_for_backward(jacobian)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (jacobian,) = ctx.saved_tensors
        return jacobian * grad_outputs[0].unsqueeze(1).to(jacobian.dtype), None, None, None, None


def token_logprobs(
    model: PreTrainedModel,
    hidden: Float[Tensor, "N hidden"],
    targets: Int[Tensor, " N"],
    temperature: float,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability (natural log, float32) of each target and the entropy (nats, no gradient) of its distribution."""
    weight = head_of(model).weight.detach()
    chunk = chunk_tokens or max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // weight.shape[0])
    return TokenLogprobs.apply(hidden, weight, targets, temperature, chunk)  # pyright: ignore[reportReturnType]


def completion_mask(prompt_lengths: Int[Tensor, " B"], lengths: Int[Tensor, " B"]) -> Bool[Tensor, "B C"]:
    """True at the completion tokens of each row; C is the longest completion of the batch."""
    counts = lengths - prompt_lengths
    return torch.arange(int(counts.max()), device=counts.device) < counts.unsqueeze(1)


def can_share_prompts(model: PreTrainedModel) -> bool:
    """True when every layer keeps an ordinary key-value cache: no sliding windows, no recurrent state."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def shared_prompt_hidden(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "B T"],
    prompt_lengths: Int[Tensor, " B"],
    mask: Bool[Tensor, "B C"],
) -> Float[Tensor, "B C hidden"]:
    """Hidden states that predict each completion token, running each distinct prompt once.

    A group's rollouts share their prompt: its keys and values are computed once and handed to every row, with
    gradients. 64 rollouts of 8 prompts, 100 + 64 tokens, then cost 4.8k positions instead of 10.5k.
    """
    device = token_ids.device
    ahead = torch.arange(int(prompt_lengths.max()), device=device)
    prompts = token_ids[:, : len(ahead)].masked_fill(ahead >= prompt_lengths.unsqueeze(1), -1)  # -1 marks padding
    distinct, index = torch.unique(prompts, dim=0, return_inverse=True)
    cache = DynamicCache(config=model.config)
    inner = backbone(model)
    hidden = inner(input_ids=distinct.clamp(min=0), past_key_values=cache, use_cache=True).last_hidden_state
    first = hidden[index, prompt_lengths - 1].unsqueeze(1)  # the prompt's last position predicts the first token
    columns = torch.arange(mask.shape[1] - 1, device=device)  # the last token of the longest row predicts nothing
    if len(columns) == 0:
        return first
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)
    places = prompt_lengths.unsqueeze(1) + columns  # [B, C - 1]
    inputs = token_ids.gather(1, places.clamp(max=token_ids.shape[1] - 1))
    causal = (columns.unsqueeze(1) >= columns).expand(len(index), -1, -1)
    prompt_seen = (ahead < prompt_lengths.unsqueeze(1)).unsqueeze(1).expand(-1, len(columns), -1)
    seen = torch.cat([prompt_seen, causal], dim=2).unsqueeze(1)  # [B, 1, C - 1, prompt + C - 1]
    bias = torch.zeros(seen.shape, dtype=first.dtype, device=device).masked_fill(~seen, -torch.inf)
    rest = inner(
        input_ids=inputs, position_ids=places, attention_mask=bias, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return torch.cat([first, rest], dim=1)


def completion_logprobs(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "B T"],
    prompt_lengths: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    share_prompts: bool = False,
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Log-probability of every completion token and the entropy of its distribution, 0 beyond the completion.

    Rows are prompt + completion, right-padded; `lengths` counts both. C is the longest completion. Natural log,
    float32, at `temperature`; gradients flow through the log-probabilities only. `share_prompts` runs equal prompts
    once, where the model's layers allow it: the same up to rounding, but no gradient of single rollouts.
    """
    assert bool((prompt_lengths > 0).all()), "a completion needs a prompt token to be predicted from"
    mask = completion_mask(prompt_lengths, lengths)
    rows, columns = mask.nonzero(as_tuple=True)
    places = prompt_lengths[rows] + columns  # of the predicted tokens; the hidden state one before predicts them
    if share_prompts and can_share_prompts(model):
        hidden = shared_prompt_hidden(model, token_ids, prompt_lengths, mask)[rows, columns]
    else:
        hidden = backbone(model)(input_ids=token_ids, use_cache=False).last_hidden_state[rows, places - 1]
    flat, flat_entropy = token_logprobs(model, hidden, token_ids[rows, places], temperature, chunk_tokens)
    blank = torch.zeros(mask.shape, device=mask.device)
    return blank.index_put((rows, columns), flat), blank.index_put((rows, columns), flat_entropy)
