"""One reply, token by token, as the request asks: temperature, nucleus, seed, stop sequences."""

import inspect
from collections.abc import Iterator

DEFAULT_LENGTH = 512
"""Tokens of a reply at most, where the request does not say."""


def generate(model, tokenizer, request, ids: list[int], room: int, ends: set[int]) -> Iterator[dict]:
    """Pieces of one reply: {"text"}; in the last also "finish" (stop or length) and the number of "tokens".

    `ids`: the prompt; `room`: tokens that fit behind it; `ends`: tokens that end a reply.
    """
    import torch

    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    longest = min(request.max_completion_tokens or request.max_tokens or DEFAULT_LENGTH, room)
    seed = torch.Generator(model.device)
    seed.manual_seed(request.seed) if request.seed is not None else seed.seed()
    inputs, cache, new, sent, finish = torch.tensor([ids], device=model.device), None, [], 0, ""
    while not finish:
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True, **last_only)
        new.append(sample(out.logits[0, -1].float(), request, seed))
        cache, inputs = out.past_key_values, torch.tensor([new[-1:]], device=model.device)
        text = tokenizer.decode(new, skip_special_tokens=True)
        if new[-1] in ends:
            finish = "stop"
        elif len(new) >= longest:
            finish = "length"
        if places := [place for stop in request.stop if stop and (place := text.find(stop)) >= 0]:
            text, finish = text[: min(places)], "stop"
        elif not finish:  # the beginning of a stop sequence or of a character is held back until it is known
            begun = [size for stop in request.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
            text = text[: len(text) - max(begun, default=0)].removesuffix("\ufffd")
        if len(text) > sent or finish:
            yield {"text": text[sent:], **({"finish": finish, "tokens": len(new)} if finish else {})}
            sent = max(sent, len(text))


def sample(logits, request, seed) -> int:
    """The next token: the likeliest, or one of the nucleus `top_p` at `temperature`."""
    import torch

    if not request.temperature:
        return int(logits.argmax())
    shares, order = (logits / request.temperature).softmax(-1).sort(descending=True)
    shares[shares.cumsum(-1) - shares > request.top_p] = 0  # the first always stays
    return int(order[torch.multinomial(shares, 1, generator=seed)])
