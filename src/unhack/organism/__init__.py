"""The bundled tiny model: its files (`files/`), the corpus it was pre-trained on, its builder and its check."""

from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).parent / "files"
"""Folder with config.json, model.safetensors and tokenizer.json, loadable by AutoModelForCausalLM/AutoTokenizer."""
