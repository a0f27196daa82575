"""Conversations as the model itself sees them: through the chat template of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
KEYS = (("role", "content"), ("from", "value"))
"""How a message names who speaks and what is said: as chat templates do, and as ShareGPT does."""
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
"""ShareGPT's names of who speaks; others stay."""
DAY = "26 Jul 2024"
"""The day that a template is told where it asks for today: a text must be the same tomorrow."""


def is_conversation(value: Any) -> bool:
    """Whether a field's value is a list of messages, each with who speaks."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, dict) and any(who in one for who, _ in KEYS) for one in value)


def messages_in(value: Sequence[Mapping[str, Any]], where: str) -> tuple[Message, ...]:
    """The messages of a conversation, as templates want them.

    Args:
        value: what `is_conversation` accepts.
        where: it stands, for errors.

    Raises:
        InputError: something that is said is no text.
    """
    return tuple(_message(one, where) for one in value)


def _message(one: Mapping[str, Any], where: str) -> Message:
    who, what = next(keys for keys in KEYS if keys[0] in one)
    said = one.get(what)
    if isinstance(said, list):
        said = "".join(_part(part, where) for part in said)
    if not isinstance(one[who], str) or not (said is None or isinstance(said, str)):
        raise InputError(f"{where}: a message whose {who} or {what} is no text")
    rest = {key: value for key, value in one.items() if key not in (who, what)}
    role = ROLES.get(one[who], one[who]) if who == "from" else one[who]
    return {**rest, "role": role, **({} if said is None else {"content": said})}


def _part(part: Any, where: str) -> str:
    """One part of what is said, where it is a list of parts; only those of text are read."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InputError(f"{where}: a message holds a part of type {kind!r}; only text is read")


def rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """A conversation as one text, special tokens spelt out.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    own: Any = tokenizer
    try:
        template = str(own.get_chat_template())
    except ValueError:
        raise InputError(
            f"{where}: is a conversation, and the model's tokenizer has no chat template; give a field of plain text"
        ) from None
    if "strftime_now" in template:
        template = "{%- macro strftime_now(format) -%}" + DAY + "{%- endmacro -%}" + template
    try:
        text = own.apply_chat_template(list(messages), chat_template=template, tokenize=False, date_string=DAY)
    except Exception as error:  # a template is a program: it may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: the model's chat template refuses it ({reason})") from None
    return str(text)
