"""OpenAI's chat API as far as it is served here: what may be asked, and the form of answers and errors.

What is not supported is refused by name instead of being ignored in silence. (llamafactory.api.protocol has models of
the same names, which ignore what they do not know.)
"""

import json
import time
import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

TEMPLATE_ROLES = {"developer": "system"}
"""OpenAI's newer word for a role -> the one that chat templates know."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    role: Literal["developer", "system", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def joined(cls, content):
        """Text parts as one text, a line each."""
        if not isinstance(content, list):
            return content
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise ValueError("the model reads text: every part must be {'type': 'text', 'text': …}")
        return "\n".join(texts)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(Strict):
    type: Literal["text"]


Penalty = Annotated[float, Field(ge=-2, le=2)]
Length = Annotated[int, Field(ge=1)]


class ChatRequest(Strict):
    """POST /v1/chat/completions. `model`: `<base>` or `<base>:<adapter>`; defaults as OpenAI's, but for the length."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = {}
    stop: Annotated[list[str], Field(max_length=4)] = []
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] = ["text"]
    tools: Annotated[list, Field(max_length=0)] = []
    user: str | None = None  # from here on without a meaning for one machine
    metadata: dict[str, str] = {}
    store: bool = False
    service_tier: str = "auto"
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def listed(cls, stop):
        return [stop] if isinstance(stop, str) else stop

    @field_validator("top_logprobs")
    @classmethod
    def wanted(cls, number, info):
        if number and not info.data.get("logprobs"):
            raise ValueError("logprobs must be true where top_logprobs is given")
        return number


class ApiError(Exception):
    """Becomes an HTTP answer in OpenAI's error form; it travels from replica to replica, so its arguments are plain."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(status, message, code, param)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error",
                               "param": param, "code": code}}


def parsed(body: bytes) -> ChatRequest:
    """The request in `body`, where null means not given; ApiError 400 that names every field that is wrong."""
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"the body of the request is no JSON: {error}", "invalid_json") from None
    try:
        return ChatRequest.model_validate(given(asked))
    except ValidationError as error:
        places, messages = [], []
        for each in error.errors():
            places.append("".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in each["loc"]).lstrip("."))
            unknown = each["type"] == "extra_forbidden"
            messages.append(f"{places[-1]}: {'unknown parameter' if unknown else each['msg'].removeprefix('Value error, ')}")
        raise ApiError(400, "; ".join(messages), "invalid_request", places[0] or None) from None


def given(asked):
    """The same without what is null: clients send back replies whose unused fields are."""
    if isinstance(asked, dict):
        return {key: given(value) for key, value in asked.items() if value is not None}
    return [given(value) for value in asked] if isinstance(asked, list) else asked


class Answer:
    """One answer in OpenAI's form, whole or in pieces: every part carries the same id and time."""

    def __init__(self, model: str):
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def piece(self, index: int, delta: dict, finish: str | None = None, logprobs: list | None = None) -> dict:
        """A chunk of a stream."""
        choice = {"index": index, "delta": delta, "finish_reason": finish,
                  "logprobs": {"content": logprobs, "refusal": None} if logprobs else None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def whole(self, pieces: list[dict], logprobs: bool) -> dict:
        """All choices and the usage, from the model's pieces."""
        choices = []
        for end in (piece for piece in pieces if "finish" in piece):
            own = [piece for piece in pieces if piece.get("index") == end["index"]]
            message = {"role": "assistant", "content": "".join(piece.get("text", "") for piece in own), "refusal": None}
            tokens = [token for piece in own for token in piece.get("logprobs", [])]
            choices.append({"index": end["index"], "message": message, "finish_reason": end["finish"],
                            "logprobs": {"content": tokens, "refusal": None} if logprobs else None})
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": pieces[-1]["usage"]}
