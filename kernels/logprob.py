"""Log-probs of chosen tokens from hidden states and output weights: log_softmax(h Wᵀ / T)[target]."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [N] with all logits [N, V] in memory: the specification."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    counted = target != ignore_index
    # where, not a product: a row that does not count may hold NaN (C3)
    hidden = torch.where(counted[:, None], hidden, 0.0)
    logits = hidden.to(wide) @ weight.to(wide).T
    if bias is not None:
        logits = logits + bias.to(wide)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = torch.log_softmax(logits / temperature, dim=-1)  # C4: the same temperature everywhere
    chosen = logp.gather(1, torch.where(counted, target, 0)[:, None])[:, 0]
    chosen = chosen.clamp(max=0.0)  # C20: rounding must not make a probability above 1
    entropy = -(logp.exp() * logp).sum(dim=-1)
    return torch.where(counted, chosen, 0.0), torch.where(counted, entropy, 0.0)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    ignore_index: int = -100,
    process_group=None,
    impl: str | None = None,
):
    """log_softmax(softcap(hidden weightᵀ + bias) / temperature)[target].

    Args:
        hidden: [N, D] any float dtype; weight: [V, D]; target: [N] int64; bias: [V] or None.
        temperature: > 0, divides the logits.
        softcap: c > 0 replaces each logit x by c·tanh(x / c).
        return_entropy: also return the entropy of each row, in nats, differentiable.
        ignore_index: rows with this target give 0 and no gradient, whatever their hidden state holds.
        impl: "reference", or None to pick by device.

    Returns:
        [N] float32 log-probs in nats, never above 0 (float64 for float64 inputs); with `return_entropy`,
        a pair of them and the entropies.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be above 0 or None, got {softcap}")
    if impl not in (None, "reference"):
        raise ValueError(f"impl must be None or 'reference', got {impl!r}")
    if process_group is not None:
        raise ValueError("process_group: a vocabulary split over ranks is not supported by this form")
    logp, entropy = linear_logprob_reference(
        hidden,
        weight,
        target,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
    )
    return (logp, entropy) if return_entropy else logp
