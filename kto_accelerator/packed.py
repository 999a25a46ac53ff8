"""Log-probabilities of replies, computed without what they do not need: no padding, no logits where no reply token is
predicted, never the logits of a whole batch at once, no prompt twice.

Rows are laid end to end as one sequence; attention stays within each row. Equal to LLaMA-Factory's `get_batch_logps`
on the padded batch, up to the order of additions. Nothing here waits for the GPU.

A mismatched row has the prompt of the row beside it. Its keys and values there, in every layer, are those that the row beside it
has already: they are taken from it, and the tokens of the shared prompt are left out (`Packed.keys`).
"""

from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from types import MethodType

from .attention import Memory, attention_beside
from .enable import MODELS
from .lean import LeanLayer, lean_norms

LOGITS_AT_ONCE = 2**27
"""Logits in memory at a time: 0.5 GiB in float32, 1,046 tokens of Llama-3's 128,256 words."""


@dataclass
class Packed:
    """Rows end to end. T tokens, R rows, P reply tokens that are predicted, K keys.

    `input_ids`, `position_ids`: (1, T). `bounds`: (R+1,) int32, where rows begin and end. `longest`: tokens of the
    longest row. `places`: (P,) the position that predicts each reply token; `targets`: (P,) that token; `counts`: how
    many each row has. `keys`: None where each row attends to its own tokens alone; else (K,) places of every row's keys among
    the tokens of the pass before and these, with `key_bounds` and `longest_key` as above.
    """

    input_ids: object
    position_ids: object
    bounds: object
    places: object
    targets: object
    keys: object
    key_bounds: object
    longest: int
    longest_key: int
    counts: list[int]

    def each(self, change) -> "Packed":
        """A copy with `change` applied to every tensor."""
        values = [getattr(self, field.name) for field in fields(self)]
        return Packed(*(change(value) if hasattr(value, "dtype") else value for value in values))

    def layout(self) -> list:
        """The tensors that the layers look at."""
        return [part for part in (self.input_ids, self.position_ids, self.bounds, self.keys, self.key_bounds) if part is not None]


def rows_of(batch: dict, prefix: str = "") -> list[tuple]:
    """The rows of a padded batch as (input ids, labels), two tensors a row on the CPU, padding removed."""
    ids, labels, mask = (batch[f"{prefix}{name}"].cpu() for name in ("input_ids", "labels", "attention_mask"))
    return [(i[m], t[m]) for i, t, m in zip(ids, labels, mask.bool(), strict=True)]


def shared_tokens(rows: list[tuple], others: list[tuple]) -> list[int]:
    """How many tokens each of `others` need not compute beside its row: they begin alike, and predict nothing of its reply."""
    shared = []
    for (ids, _), (other, labels) in zip(rows, others, strict=True):
        size = min(len(ids), len(other))
        differs, replies = (ids[:size] != other[:size]).nonzero(), (labels[1:] != -100).nonzero()
        alike, first = (int(found[0]) if len(found) else size for found in (differs, replies))  # `first` predicts the first reply token
        shared.append(min(alike, first, len(other) - 1))
    return shared


def pack(rows: list[tuple], shared: list[tuple[int, int]] | None = None, before: int = 0, steps: tuple[int, int] = (0, 0)) -> Packed:
    """`rows` end to end, on the CPU. A row's first token is never predicted; label -100 means: not a reply token.

    `shared`: of every row, where the tokens that it begins with lie already, among `before` tokens of an earlier pass and the tokens
    of these rows, and how many those are; they are left out here. `steps`: tokens and keys are padded to multiples of these.
    """
    import torch

    if not any(count for _, count in shared or ()):
        shared = None
    if steps[0]:  # a row more, of padding; keys that it lacks are any tokens of the pass before
        keys = sum(len(ids) for ids, _ in rows)
        tokens = keys - sum(count for _, count in shared or ())
        size = -tokens % steps[0] or steps[0]
        taken = -(keys + size) % steps[1] if shared else 0
        rows = [*rows, (rows[0][0].new_zeros(size + taken), rows[0][1].new_full((size + taken,), -100))]
        shared = shared and [*shared, (0, taken)]
    skipped = torch.tensor([count for _, count in shared or [(0, 0)] * len(rows)])
    rows = [(ids[count:], labels[count:]) for (ids, labels), count in zip(rows, skipped.tolist(), strict=True)]
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    starts = lengths.cumsum(0) - lengths
    labels = torch.cat([torch.cat([row[1:], row.new_full((1,), -100)]) for _, row in rows])
    places = (labels != -100).nonzero().squeeze(1)
    counts = [int((row[1:] != -100).sum()) for _, row in rows]
    positions = torch.arange(len(labels)) + (skipped - starts).repeat_interleave(lengths)
    bounds, keys, key_bounds, longest = _bounds(lengths), None, None, int(lengths.max())
    longest_key = longest
    if shared is not None:
        parts = [torch.arange(start, start + size) for (place, count), begin, length in
                 zip(shared, (starts + before).tolist(), lengths.tolist(), strict=True)
                 for start, size in ((place, count), (begin, length))]
        keys = torch.cat(parts).clamp_(max=before + len(labels) - 1)  # the padding's may be more than there are
        key_bounds, longest_key = _bounds(lengths + skipped), int((lengths + skipped).max())
    return Packed(torch.cat([ids for ids, _ in rows])[None], positions[None], bounds, places, labels[places], keys, key_bounds,
                  longest, longest_key, counts[:-1] if steps[0] else counts)


def _bounds(lengths):
    import torch

    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)


def to_device(tensor, device):
    """A copy on `device` that the CPU does not wait for: that takes pinned memory on this side."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def logps(model, rows: Packed, adapted: int | None = None, memory: Memory | None = None, again: bool = False):
    """(R,) float32: each row's summed log-probability of its reply.

    `adapted`: the adapter acts on the first so many tokens only; then gradients must be off. `memory`: with `rows.keys`, that of the
    pass before; else one to be filled. `again`: the adapters are those of the pass before, whose backward is still to come.
    `model` was prepared with `prepare`, and may be wrapped since (autocast).
    """
    import torch

    device = next(model.parameters()).device
    rows = rows.each(lambda tensor: to_device(tensor, device))
    with _adapter_on_first(adapted):
        per_token = model(input_ids=rows.input_ids, packed=(rows, memory, again))
    return torch.stack([part.sum() for part in per_token.split(rows.counts)])


def prepare(model, fp8: bool = False, tokens: int = 0) -> bool:
    """Make a PEFT model understand `logps`. Returns whether all of its adapter can be limited to some rows (`adapted`).

    `fp8`: keep the frozen weights under the adapter in 8 bits. `tokens`: with graphs (graphs.py) of passes over so many
    at most. ValueError where the model's attention is not known to keep packed rows
    apart, or its adapter is not of the kind that `fp8` needs.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    base = model.get_base_model()
    kind, attention = base.config.model_type, base.config._attn_implementation
    if kind not in MODELS or attention not in ("sdpa", "flash_attention_2"):
        raise ValueError(f"packed rows are not proved for the model type {kind!r} with {attention!r} attention; "
                         f"known: {', '.join(MODELS)} with sdpa or flash_attention_2")
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not getattr(stock, "knows_packed", False):
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attention_beside(stock)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    lean = [LeanLayer(layer) for layer in layers if LeanLayer.fits(layer)]
    plain = len(lean) == len(layers) and not model.modules_to_save
    run = partial(_layers, base.model)
    if tokens and plain:
        from .graphs import Graphs

        run = Graphs(run, [weight for weight in model.parameters() if weight.requires_grad], tokens)
    base.forward = MethodType(_forward_beside(base.forward, lean, run), base)
    lean_norms(base)
    if fp8 and (not plain or any(layer.frozen for layer in lean)):
        raise ValueError("fp8: the adapter is not plain LoRA on linear layers of full precision\n"
                         "  expected: no dropout, DoRA, quantised base or additional_target\n  fix:      fp8: false")
    for layer in lean if fp8 else ():
        layer.quantise()
    return plain


def _layers(model, rows: Packed, memory: Memory | None):
    """(1, T, width): the last hidden states of packed rows."""
    sharing = {} if memory is None else {"keys": rows.keys, "memory": memory}
    return model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False, **sharing,
                 cu_seq_lens_q=rows.bounds, cu_seq_lens_k=rows.bounds if rows.keys is None else rows.key_bounds,
                 max_length_q=rows.longest, max_length_k=rows.longest_key)[0]


def _forward_beside(stock, lean: list[LeanLayer], layers):
    """The causal model's forward: per-token log-probabilities where it is given packed rows, as it was otherwise."""

    def forward(self, *args, packed: tuple[Packed, Memory | None, bool] | None = None, **kwargs):
        if packed is None:
            return stock(*args, **kwargs)
        rows, memory, again = packed
        if not again:
            LeanLayer.refresh(lean)
        hidden = layers(rows, memory)
        return token_logps(self.get_output_embeddings(), hidden[0].index_select(0, rows.places), rows.targets)

    return forward


def token_logps(output_layer, hidden, targets):
    """(P,) float32 from hidden states (P, width): logits are made in chunks, and made again in the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(states, wanted):  # log_softmax: liger-kernel replaces torch's cross_entropy in the whole process
        return output_layer(states).float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    size = max(1, LOGITS_AT_ONCE // output_layer.weight.shape[0])
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks])


@contextmanager
def _adapter_on_first(tokens: int | None):
    """Adapters act on the first so many tokens of the packed sequence only."""
    LeanLayer.first_tokens = tokens
    try:
        yield
    finally:
        LeanLayer.first_tokens = None
