"""The supported part of OpenAI's chat API: requests, answers and errors.

What is not supported is refused by name, where llamafactory.api.protocol's models of the same names ignore it.
"""

import json
import time
import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator


class Message(BaseModel, extra="forbid"):
    role: Literal["developer", "system", "user", "assistant"]
    content: str
    name: str | None = None
    tool_calls: Annotated[list, Field(max_length=0)] = []  # of a reply that is sent back
    annotations: Annotated[list, Field(max_length=0)] = []

    @field_validator("content", mode="before")
    @classmethod
    def joined(cls, content):
        """Text parts as one text, a line each."""
        if not isinstance(content, list):
            return content
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
            raise ValueError("the model reads text: every part must be {'type': 'text', 'text': …}")
        return "\n".join(part["text"] for part in content)


Penalty = Annotated[float, Field(ge=-2, le=2)]
Length = Annotated[int, Field(ge=1)]


class ChatRequest(BaseModel, extra="forbid"):
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
    stream_options: dict[Literal["include_usage", "include_obfuscation"], bool] = {}
    response_format: dict[Literal["type"], Literal["text"]] = {}
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
    """The request in `body`; ApiError 400 that names the first field that is wrong. Null means not given: clients send back
    replies whose unused fields are null."""
    try:
        asked = json.loads(body, object_pairs_hook=lambda pairs: {key: value for key, value in pairs if value is not None})
        return ChatRequest.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"]).lstrip(".")
        wrong = "unknown parameter" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{where or 'the request'}: {wrong}", "invalid_request", where or None) from None
    except ValueError as error:
        raise ApiError(400, f"the body of the request is no JSON: {error}", "invalid_json") from None


class Answer:
    """One answer in OpenAI's form, whole or in pieces: every part carries the same id and time."""

    def __init__(self, model: str):
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def chunk(self, piece: dict, delta: dict) -> dict:
        """A part of a stream, of the model's `piece` (see `generate`)."""
        choice = {"index": piece["index"], "delta": delta, "finish_reason": piece.get("finish"), "logprobs": logprobs([piece])}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def whole(self, pieces: list[dict]) -> dict:
        """All choices and the usage, from the model's pieces."""
        choices = []
        for end in (piece for piece in pieces if "finish" in piece):
            own = [piece for piece in pieces if piece.get("index") == end["index"]]
            message = {"role": "assistant", "content": "".join(piece["text"] for piece in own), "refusal": None}
            choices.append({"index": end["index"], "message": message, "finish_reason": end["finish"], "logprobs": logprobs(own)})
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": pieces[-1]["usage"]}


def logprobs(pieces: list[dict]) -> dict | None:
    """The log-probabilities of the pieces' tokens in OpenAI's form; None where none were asked for."""
    tokens = [token for piece in pieces for token in piece.get("logprobs", ())]
    return {"content": tokens, "refusal": None} if tokens else None
