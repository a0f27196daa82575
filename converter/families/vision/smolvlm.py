"""SmolVLM 2: Idefics 3 under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from . import idefics3

MODEL = replace(idefics3.MODEL, model_type="smolvlm")
