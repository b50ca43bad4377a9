"""One interface to a causal language model that decodes P groups of G slots, one token per slot and call.

`SharedPrefixDecoder` runs the modules of Llama-like models directly: a prompt's keys and values are computed once and
kept once per group, and every slot of the group attends to that one copy plus its own suffix. `CachedDecoder` runs any
transformers model with its own cache: prefill once per prompt, then the cache is repeated for the slots.

Letters besides the legend in `types.py`: H key-value heads, R query heads per key-value head, D head dimension,
S prompt tokens (right-padded), W the hidden width.
Not here: drawing tokens, stopping, records (see `native.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose layers are exactly norm → rotary attention (query/key norms allowed) → norm → gated MLP."""

LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary variants whose angles change with the length seen so far: no table of them can be kept."""


class Decoder(ABC):
    """State of P groups × G slots that all have decoded the same number of tokens."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int) -> Float[Tensor, "P V"]:
        """Read P prompts (token ids) and return the logits that follow each; every prompt gets `group_size` slots."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, "P G"]) -> Float[Tensor, "P G V"]:
        """Append one token to every slot and return the logits that follow it."""

    @abstractmethod
    def keep(self, groups: Int[Tensor, " P2"], slots: Int[Tensor, "P2 G2"]) -> None:
        """Drop everything but `slots[i]` of group `groups[i]`; the new order is the one given."""


def build_decoder(model: Any) -> Decoder:
    """The fast decoder where its equations are known to be the model's, else the one that runs the model's forward."""
    config = model.config
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    known = config.model_type in LLAMA_LIKE and set(layer_types) == {"full_attention"}
    if not known or (windowed and not hasattr(config, "layer_types")):
        return CachedDecoder(model)
    if model.model.rotary_emb.rope_type in LENGTH_DEPENDENT_ROPE:
        return CachedDecoder(model)
    return SharedPrefixDecoder(model)


class LayerCache:
    """Keys and values of one layer: the prompt's once per group, the completion's per slot."""

    def __init__(self, keys: Float[Tensor, "P H S D"], values: Float[Tensor, "P H S D"], group_size: int) -> None:
        groups, self.heads, _, width = keys.shape
        self.prefix_keys = keys.transpose(-1, -2).flatten(0, 1).contiguous()  # (P·H, D, S)
        self.prefix_values = values.flatten(0, 1).contiguous()  # (P·H, S, D)
        self.keys = keys.new_empty(groups * self.heads * group_size, 0, width)  # (P·H·G, room, D)
        self.values = self.keys.clone()

    def append(
        self, keys: Float[Tensor, "P G H D"], values: Float[Tensor, "P G H D"], length: int, limit: int
    ) -> tuple[Float[Tensor, "PHG T D"], Float[Tensor, "PHG T D"]]:
        """Write column `length` (room grows in doublings up to `limit`) and return all columns written so far."""
        if length == self.keys.shape[1]:
            room = min(limit, max(64, 2 * length)) - length
            self.keys = functional.pad(self.keys, (0, 0, 0, room))
            self.values = functional.pad(self.values, (0, 0, 0, room))
        groups, slots, heads, width = keys.shape
        self.keys[:, length].view(groups, heads, slots, width).copy_(keys.transpose(1, 2))
        self.values[:, length].view(groups, heads, slots, width).copy_(values.transpose(1, 2))
        return self.keys[:, : length + 1], self.values[:, : length + 1]

    def keep(self, groups: Int[Tensor, " P2"], slots: Int[Tensor, "P2 G2"], group_size: int) -> None:
        """Keep the named slots, in that order; there are `group_size` of them per group before."""
        heads = torch.arange(self.heads, device=groups.device)
        rows = groups[:, None] * self.heads + heads  # (P2, H) of P·H
        chosen = (rows[:, :, None] * group_size + slots[:, None, :]).flatten()
        self.keys, self.values = self.keys[chosen], self.values[chosen]
        self.prefix_keys, self.prefix_values = self.prefix_keys[rows.flatten()], self.prefix_values[rows.flatten()]


class SharedPrefixDecoder(Decoder):
    """Llama-like models: attention over [the group's prompt ; the slot's own completion], one softmax over both.

    Calls the model's own modules (so wrapped linears use their merged weights), but none of the forward code of
    transformers, whose masks, hooks and small operations cost more than the arithmetic of a small model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = list(model.model.layers)
        config = model.config
        self.kv_heads = config.num_key_value_heads
        self.repeats = config.num_attention_heads // config.num_key_value_heads
        self.caches: list[LayerCache] = []
        self.length = 0  # completion tokens in the cache

    def prefill(self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int) -> Float[Tensor, "P V"]:
        """See `Decoder.prefill`; right padding needs no mask here, because attention is causal."""
        model, lengths = self.model.model, [len(prompt) for prompt in prompts]
        device, self.limit, self.length, self.caches = model.embed_tokens.weight.device, max_new_tokens, 0, []
        self.slots = group_size
        tokens = pad(prompts, device, left=False)
        self.prompt_lengths = torch.tensor(lengths, device=device)
        hidden = model.embed_tokens(tokens)
        self._tabulate(hidden, max(lengths) + max_new_tokens)
        positions = torch.arange(tokens.shape[1], device=device)
        rotary = self.cosine[positions, None], self.signed_sine[positions, None]
        for layer in self.layers:
            query, key, value = self._project(layer, hidden, rotary)
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            self.caches.append(LayerCache(key, value, group_size))
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0, enable_gqa=self.repeats > 1
            )
            hidden = self._finish(layer, hidden, attended.transpose(1, 2).flatten(-2))
        self.padding_bias = None
        if min(lengths) < max(lengths):
            beyond = positions[None] >= self.prompt_lengths[:, None]
            bias = torch.zeros(beyond.shape, dtype=hidden.dtype, device=device).masked_fill(beyond, float("-inf"))
            self.padding_bias = bias.repeat_interleave(self.kv_heads, dim=0)[:, None]  # (P·H, 1, S)
        last = hidden[torch.arange(len(lengths), device=device), self.prompt_lengths - 1]
        return self._logits(last)

    def step(self, tokens: Int[Tensor, "P G"]) -> Float[Tensor, "P G V"]:
        """See `Decoder.step`."""
        hidden = self.model.model.embed_tokens(tokens)
        positions = (self.prompt_lengths + self.length)[:, None, None]
        rotary = self.cosine[positions], self.signed_sine[positions]  # (P, 1, 1, D)
        for layer, cache in zip(self.layers, self.caches, strict=True):
            query, key, value = self._project(layer, hidden, rotary)
            attended = self._attend(query, key, value, cache)
            hidden = self._finish(layer, hidden, attended)
        self.length += 1
        return self._logits(hidden)

    def keep(self, groups: Int[Tensor, " P2"], slots: Int[Tensor, "P2 G2"]) -> None:
        """See `Decoder.keep`."""
        self.prompt_lengths = self.prompt_lengths[groups]
        if self.padding_bias is not None:
            self.padding_bias = self.padding_bias.unflatten(0, (-1, self.kv_heads))[groups].flatten(0, 1)
        for cache in self.caches:
            cache.keep(groups, slots, self.slots)
        self.slots = slots.shape[1]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Float[Tensor, "P G HRD"]:
        groups, slots, heads, width = query.shape
        # (P·H, G·R, D): slots of a group lie beside each other, so the prompt is one product per group and head
        query = query.view(groups, slots, self.kv_heads, self.repeats, width).transpose(1, 2)
        query = query.reshape(groups * self.kv_heads, slots * self.repeats, width)
        keys, values = cache.append(key, value, self.length, self.limit)
        prompt = cache.prefix_values.shape[1]
        scores = torch.bmm(query, cache.prefix_keys)
        if self.padding_bias is not None:
            scores += self.padding_bias
        # (P·H·G, R, …) from here on: each slot has completion keys of its own
        own = torch.bmm(query.view(-1, self.repeats, width), keys.transpose(-1, -2))
        weights = torch.cat((scores.view(-1, self.repeats, prompt), own), dim=-1)
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        shared = torch.bmm(weights[..., :prompt].reshape(scores.shape), cache.prefix_values)
        attended = torch.baddbmm(shared.view(-1, self.repeats, width), weights[..., prompt:], values)
        attended = attended.view(groups, self.kv_heads, slots, self.repeats * width).transpose(1, 2)
        return attended.reshape(groups, slots, heads * width)

    def _project(self, layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Normed, scaled, rotated queries (…, H·R, D) and keys (…, H, D), and values (…, H, D) of a (…, W) input."""
        attention = layer.self_attn
        normed = root_mean_square_norm(layer.input_layernorm, hidden)
        shape = (*hidden.shape[:-1], -1, attention.head_dim)
        # queries and keys share one tensor: half the small operations of norm and rotation
        heads = torch.cat((attention.q_proj(normed), attention.k_proj(normed)), dim=-1).view(shape)
        if hasattr(attention, "q_norm"):
            heads = functional.rms_norm(heads, shape[-1:], None, attention.q_norm.variance_epsilon)
        heads = heads * self.head_scales[attention.layer_idx]
        cosine, signed_sine = rotary
        # Su et al. 2021 (arXiv:2104.09864): rotate_half(x)·sin is roll(x, D/2) times a sine that carries the sign
        heads = torch.addcmul(heads * cosine, heads.roll(attention.head_dim // 2, -1), signed_sine)
        query, key = heads.split((self.kv_heads * self.repeats, self.kv_heads), dim=-2)
        return query, key, attention.v_proj(normed).view(shape)

    def _finish(self, layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + layer.self_attn.o_proj(attended)
        normed = root_mean_square_norm(layer.post_attention_layernorm, hidden)
        mlp = layer.mlp
        return hidden + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(root_mean_square_norm(self.model.model.norm, hidden))

    def _tabulate(self, hidden: Tensor, positions: int) -> None:
        """Rotary tables (position, D); per layer, query scale and norm weights of queries and keys (H·R + H, D)."""
        indices = torch.arange(positions, device=hidden.device)[None]
        cosine, sine = self.model.model.rotary_emb(hidden, indices)
        half = sine.shape[-1] // 2
        self.cosine = cosine[0]
        self.signed_sine = torch.cat((-sine[0, :, :half], sine[0, :, half:]), dim=-1)
        self.head_scales: list[Tensor] = []
        for layer in self.layers:
            attention = layer.self_attn
            query = hidden.new_ones(attention.head_dim) if not hasattr(attention, "q_norm") else attention.q_norm.weight
            key = hidden.new_ones(attention.head_dim) if not hasattr(attention, "k_norm") else attention.k_norm.weight
            rows = (query * attention.scaling).expand(self.kv_heads * self.repeats, -1), key.expand(self.kv_heads, -1)
            self.head_scales.append(torch.cat(rows))


class CachedDecoder(Decoder):
    """Any transformers causal model through its own forward and cache (left-padded prompts, repeated for the slots)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int) -> Float[Tensor, "P V"]:
        """See `Decoder.prefill`."""
        device = self.model.get_input_embeddings().weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        tokens = pad(prompts, device, left=True)
        columns = torch.arange(tokens.shape[1], device=device)
        mask = columns[None] >= tokens.shape[1] - lengths[:, None]
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(tokens, mask.long(), positions)
        rows = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        self.slots = group_size
        self.mask, self.next_positions = mask.long()[rows], lengths[rows]
        return logits

    def step(self, tokens: Int[Tensor, "P G"]) -> Float[Tensor, "P G V"]:
        """See `Decoder.step`."""
        self.mask = functional.pad(self.mask, (0, 1), value=1)
        logits = self._forward(tokens.reshape(-1, 1), self.mask, self.next_positions[:, None])
        self.next_positions = self.next_positions + 1
        return logits.view(*tokens.shape, -1)

    def keep(self, groups: Int[Tensor, " P2"], slots: Int[Tensor, "P2 G2"]) -> None:
        """See `Decoder.keep`."""
        rows = (groups[:, None] * self.slots + slots).flatten()
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        self.mask, self.next_positions, self.slots = self.mask[rows], self.next_positions[rows], slots.shape[1]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Float[Tensor, "B V"]:
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def pad(prompts: Sequence[Sequence[int]], device: torch.device, left: bool) -> Int[Tensor, "P S"]:
    """Prompts as one rectangle; the padding value is 0 and never read through a mask or beyond a length."""
    longest = max(len(prompt) for prompt in prompts)
    rows = []
    for prompt in prompts:
        filler = [0] * (longest - len(prompt))
        rows.append([*filler, *prompt] if left else [*prompt, *filler])
    return torch.tensor(rows, device=device)


def root_mean_square_norm(norm: Any, hidden: Float[Tensor, "*axes W"]) -> Float[Tensor, "*axes W"]:
    """`x / sqrt(mean(x²) + ε) · weight` with a Llama-like norm module's weight and ε, as one operation."""
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
