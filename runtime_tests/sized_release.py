"""The main job for a size: the choice, the checkpoint and the file, and the best plain file of that size beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..converter.budget.forms import Form
from ..converter.core.progress import Progress
from ..converter.core.recipe import RECIPE_FILE, Recipe, read_recipe
from ..converter.model.source import Source
from ..converter.pipeline import compress
from ..converter.statistics.calibration import Tokens
from ..converter.storage.files import write_whole
from ..exporters.artifact import Artifact
from ..exporters.budget.search import Found
from ..exporters.budget.sized import Sized, sized
from ..exporters.gguf.mixes import CHOSEN
from ..exporters.gguf.rounding_choice import Rounding
from .backends.open import LLAMA_CPP, TORCH, open_backend
from .exporting import export
from .metrics.measure import measure
from .metrics.reference_logits import ReferenceLogits
from .metrics.windows import Windows

CHOICE_FILE = "choice.json"
