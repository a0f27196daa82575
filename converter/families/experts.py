"""A block's experts: linears that see those tokens alone that a router sends them. How many, config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..storage.documents import shown

MOST = 1024  # experts of a block that a config.json is believed


@dataclass(frozen=True)
class InputGroup:
    """Linears that read the same activations, so that one second moment serves them all."""

    name: str
    linears: tuple[str, ...]  # module paths inside a block, in the order the block calls them
    expert: int | None = None  # whose, where only the tokens that are routed to it come here


@dataclass(frozen=True)
class Experts:
    """The experts of a block, each a gated MLP.

    Attributes:
        path: of the list of experts, inside a block.
        router: of what scores the experts for a token, inside a block.
        count, used, inner: keys of config.json: experts of a block, experts that a token is sent to, features between
            an expert's linears.
        gate, up, down: names of an expert's linears.
    """

    path: str
    router: str
    count: str
    used: str
    inner: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def linear(self, expert: int | str, name: str) -> str:
        """Path inside a block of one linear of an expert."""
        return f"{self.path}.{expert}.{name}"

    def stack(self, linear: str) -> str:
        """What the same linear of all experts is called together: its name with `*` for the expert.

        Args:
            linear: a name, from inside a block or of the whole model; one of no expert is given back.
        """
        before, inside, rest = linear.partition(f"{self.path}.")
        expert, dot, name = rest.partition(".")
        return f"{before}{inside}*.{name}" if dot and expert.isdigit() else linear

    def number(self, config: Mapping[str, Any]) -> int:
        """How many experts a block has.

        Raises:
            InputError: config.json does not say, or no such number.
        """
        return _number(config, self.count, MOST)

    def used_per_token(self, config: Mapping[str, Any]) -> int:
        """How many experts see a token.

        Raises:
            InputError: config.json does not say, or more than there are.
        """
        return _number(config, self.used, self.number(config))

    def gguf_keys(self, config: Mapping[str, Any]) -> dict[str, int]:
        """What a GGUF file says of them, without the architecture before the names.

        Raises:
            InputError: config.json does not say.
        """
        inner = {"expert_feed_forward_length": int(config[self.inner])} if self.inner != "intermediate_size" else {}
        return {"expert_count": self.number(config), "expert_used_count": self.used_per_token(config), **inner}

    def groups(self, count: int) -> tuple[InputGroup, ...]:
        """Input groups of all experts, in the order in which a block calls them."""
        found = []
        for expert in range(count):
            gate, up, down = (self.linear(expert, name) for name in (self.gate, self.up, self.down))
            found.append(InputGroup(f"expert {expert} in", (gate, up), expert))
            found.append(InputGroup(f"expert {expert} out", (down,), expert))
        return tuple(found)


def _number(config: Mapping[str, Any], key: str, most: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= most:
        raise InputError(f"config.json says {key} is {shown(value)}, no number from 1 to {most}")
    return value
