"""Generate one reply, token by token: sampling, stop sequences and log-probabilities as in OpenAI's API."""

import inspect
from collections.abc import Iterator

DEFAULT_LENGTH = 512  # tokens of a reply at most, where the request does not say


def generate(model, tokenizer, request, ids: list[int], room: int, ends: set[int], index: int = 0) -> Iterator[dict]:
    """Pieces of one reply: {"text", "logprobs": an entry a token if asked for}; in the last "finish" and the number of "tokens".

    `ids`: the prompt; `room`: tokens that fit behind it; `ends`: tokens that end a reply; `index`: which of `n` replies.
    """
    import torch

    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    longest = min(request.max_completion_tokens or request.max_tokens or DEFAULT_LENGTH, room)
    seed = torch.Generator(model.device)
    seed.manual_seed(request.seed + index) if request.seed is not None else seed.seed()
    inputs, cache, new, logprobs, sent, finish = torch.tensor([ids], device=model.device), None, [], [], 0, ""
    while not finish:
        with torch.inference_mode():
            out = model(input_ids=inputs, past_key_values=cache, use_cache=True, **last_only)
            cache, logits = out.past_key_values, out.logits[0, -1].float()
            token = sample(logits, request, new, seed)
        new.append(token)
        inputs = torch.tensor([[token]], device=model.device)
        if request.logprobs:
            logprobs.append(entry(logits.log_softmax(-1), token, tokenizer, request.top_logprobs))
        text = tokenizer.decode(new, skip_special_tokens=True)
        if token in ends:
            finish = "stop"
        elif len(new) >= longest:
            finish = "length"
        if places := [place for stop in request.stop if stop and (place := text.find(stop)) >= 0]:
            text, finish = text[: min(places)], "stop"
        elif not finish:  # the beginning of a stop sequence or of a character is held back until it is known
            begun = [size for stop in request.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
            text = text[: len(text) - max(begun, default=0)].removesuffix("\ufffd")
        if len(text) > sent or finish:
            yield {"text": text[sent:], "logprobs": logprobs, **({"finish": finish, "tokens": len(new)} if finish else {})}
            sent, logprobs = max(sent, len(text)), []


def sample(logits, request, new: list[int], seed) -> int:
    """The next token: penalties and biases, then the likeliest, or one of the nucleus `top_p` at `temperature`."""
    import torch

    logits = logits.clone()
    for token in set(new) if request.frequency_penalty or request.presence_penalty else ():
        logits[token] -= request.presence_penalty + request.frequency_penalty * new.count(token)
    for token, bias in request.logit_bias.items():
        if token < len(logits):
            logits[token] += bias
    if not request.temperature:
        return int(logits.argmax())
    shares, order = (logits / request.temperature).softmax(-1).sort(descending=True)
    shares[shares.cumsum(-1) - shares > request.top_p] = 0  # the first always stays
    return int(order[torch.multinomial(shares, 1, generator=seed)])


def entry(logprobs, token: int, tokenizer, top: int) -> dict:
    """OpenAI's form of a token's log-probability (nats, before temperature), with the `top` likeliest in its place."""

    def one(number: int) -> dict:
        text = tokenizer.decode([number])
        return {"token": text, "logprob": max(float(logprobs[number]), -9999.0), "bytes": list(text.encode())}

    return {**one(token), "top_logprobs": [one(int(number)) for number in logprobs.topk(top).indices] if top else []}
