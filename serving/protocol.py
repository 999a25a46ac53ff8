"""OpenAI's chat API as far as it is served here: what may be asked, and the form of answers and errors.

What is not supported is refused by name instead of being ignored in silence.
"""

import time
import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SSE_END = "data: [DONE]\n\n"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """POST /v1/chat/completions. `model`: `<base>` or `<base>:<adapter>`; defaults as OpenAI's, but for the length."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def longest(self) -> int:
        """Tokens of the reply at most."""
        return self.max_completion_tokens or self.max_tokens or 512


class ApiError(Exception):
    """Becomes an HTTP answer in OpenAI's error form; it travels from replica to replica, so its arguments are plain."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(status, message, code, param)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error",
                               "param": param, "code": code}}


def parsed(body: bytes) -> ChatRequest:
    """The request in `body`; ApiError 400 that names every field that is wrong."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        message = "; ".join(f"{place}: {what}" if place else what for place, what in wrong)
        raise ApiError(400, message, "invalid_request", wrong[0][0] or None) from None


class Answer:
    """One reply in OpenAI's form, whole or in pieces: every part carries the same id and time."""

    def __init__(self, model: str):
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def piece(self, delta: dict, finish: str | None = None, usage: dict | None = None) -> dict:
        """A chunk of a stream; with `usage`, the last one, which has no choices."""
        choices = [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return {**self.head, "object": "chat.completion.chunk", "choices": choices, "usage": usage}

    def whole(self, text: str, finish: str, usage: dict) -> dict:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": usage}


def models(names: dict[str, int], loaded: list[str]) -> dict:
    """GET /v1/models: `names` -> when each was made, in seconds since 1970. `loaded`, not OpenAI's: adapters in memory."""
    return {"object": "list", "data": [
        {"id": name, "object": "model", "created": made, "owned_by": "kto-at-scale",
         "loaded": ":" not in name or name.partition(":")[2] in loaded} for name, made in names.items()]}
