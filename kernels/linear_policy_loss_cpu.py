"""The chunks of `linear_policy_loss.py` on a CPU: all exponentials of some tokens at a time, in tiles.

A tile holds e = exp(z − m) of the chunk's tokens and WIDTH vocabulary entries, with the tile's own maximum m
of each token. Once the token's log Σ and coefficient c are known, ∂loss/∂z = − c · exp(m − log Σ) · e: a
factor a token and tile, which goes to the products' [tokens, D] sides, so that exponentials are multiplied as
they are. What is not of that form is the target's, c · (1 − p): its e is set to 0 and its part added in full
precision, for 1 − p of a token that is nearly certain would be lost in the rounding of bfloat16.

bfloat16: the logits are products of rounded states and weights added up in float32. Libraries on CPUs would
round that sum, so rounded numbers are multiplied in float32 there. e is kept in bfloat16; products 2 and 3
are bfloat16, a tile at a time, and what they give is added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nanov2.kernels.common import precise, product

BUFFER = 36 << 20  # bytes of exponentials in memory at once
WIDTH = 1024  # vocabulary entries in a tile: its passes stay in the caches


def in_chunks(mask: Tensor, rows: int) -> Iterator[Tensor]:
    """Places of the tokens that count, `rows` at a time."""
    places = mask.nonzero()[:, 0]
    return iter(places.split(rows)) if len(places) else iter(())


class Chunks:
    """One pass over tokens; `sums` and `gradients` are called in turn, chunk by chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, temperature: float, bf16: bool, chunk: int, needs: list[bool]
    ):
        self.hidden, self.weight, self.temperature, self.needs = hidden, weight, temperature, needs
        self.wide = precise(hidden)
        self.stored = torch.bfloat16 if bf16 else self.wide
        v, size = len(weight), torch.finfo(self.stored).bits // 8
        self.rows = min(chunk or max(BUFFER // (size * v), 16), max(len(hidden), 1))
        self.tiles = [slice(v0, min(v0 + WIDTH, v)) for v0 in range(0, v, WIDTH)]
        self.buffer = torch.empty(self.rows * v, dtype=self.stored)
        self.dh = torch.zeros_like(hidden, dtype=self.wide) if needs[0] else hidden.new_zeros(0)
        self.dw = torch.zeros_like(weight, dtype=self.wide) if needs[1] else weight.new_zeros(0)

    def _tile(self, k: int) -> Tensor:
        """Exponentials [n, width] of a tile, in the buffer."""
        part, n = self.tiles[k], len(self.h)
        return self.buffer[n * part.start : n * part.stop].view(n, -1)

    def _weight(self, k: int) -> Tensor:
        return self.weight[self.tiles[k]].to(self.stored)

    def sums(self, some: Tensor, on: Tensor, target: Tensor) -> Tensor:
        """m, total, chosen and moment [4, n] of tokens `some` (see logprob.py); keeps their exponentials."""
        h = self.hidden[some].to(self.stored).to(self.wide)
        self.h, self.target = h if self.temperature == 1.0 else h / self.temperature, target
        n = len(h)
        parts = h.new_empty(3, len(self.tiles), n)
        self.m = parts[0]
        for k in range(len(self.tiles)):
            m, total, moment = parts[:, k]
            z = product(self.h, self._weight(k).to(self.wide).T)
            torch.amax(z, 1, out=m)
            z.sub_(m[:, None])
            e = torch.exp(z, out=self._tile(k) if self.stored == self.wide else None)
            torch.sum(e, 1, out=total)
            moment.copy_(torch.linalg.vecdot(e, z))
            if self.stored != self.wide:
                self._tile(k).copy_(e)
        m, total, moment = parts
        largest = m.amax(0)
        shift = m - largest
        scale = shift.exp()
        self.here = (target >= 0) & (target < len(self.weight))  # else it is another rank's
        rows = self.weight[torch.where(self.here, target, 0)].to(self.stored).to(self.wide)
        logit = torch.linalg.vecdot(self.h, rows)
        chosen = torch.where(self.here, (logit - largest).clamp(max=0.0), -torch.inf)  # C20
        return torch.stack(
            [largest, (scale * total).sum(0), chosen, (scale * (moment + shift * total)).sum(0)]
        )

    def gradients(
        self, some: Tensor, logp: Tensor, entropy: Tensor, log_total: Tensor, c: Tensor, d_entropy: Tensor
    ) -> None:
        """Add the gradients of the chunk, with ∂loss/∂logp = c and ∂loss/∂entropy = d_entropy [n]."""
        if not any(self.needs):
            return
        bonus = bool(d_entropy.any())
        live = (c != 0) | (d_entropy != 0)
        if not live.any():
            return
        h, keep = self.h, None
        if not live.all():
            keep = live.nonzero()[:, 0]
            h, some = h[keep], some[keep]
        p = logp.exp()
        at_target = torch.where(self.here, -c * logp.expm1() - d_entropy * p * (logp + entropy), 0.0)
        self._forget_targets()
        dh = torch.zeros_like(h)
        for k, part in enumerate(self.tiles):
            e = self._tile(k)
            factor = (self.m[k] - log_total).exp()
            scale = -c * factor
            if bonus:  # − ∂loss/∂entropy · p · (log p + entropy), and log p = log e + m − log Σ
                wide = e.to(self.wide)
                log_p = (
                    wide.clamp(min=torch.finfo(self.wide).tiny).log().add_((self.m[k] - log_total)[:, None])
                )
                slope = log_p.add_(entropy[:, None]).mul_(-d_entropy[:, None]).sub_(c[:, None])
                e, scale = wide.mul_(slope).to(self.stored), factor
            if keep is not None:
                e, scale = e[keep], scale[keep]
            if self.needs[0]:
                dh.addcmul_(product(e, self._weight(k)).to(self.wide), scale[:, None])
            if self.needs[1]:
                self.dw[part] += product(e.T, (h * scale[:, None]).to(self.stored))
        at_target, target = (at_target, self.target) if keep is None else (at_target[keep], self.target[keep])
        target = torch.where((target >= 0) & (target < len(self.weight)), target, 0)
        if self.needs[0]:
            dh += at_target[:, None] * self.weight[target].to(self.stored)
            self.dh[some] = dh.div_(self.temperature)
        if self.needs[1]:
            self.dw.index_add_(0, target, at_target[:, None] * h)

    def _forget_targets(self) -> None:
        """Set the exponentials of targets to 0."""
        n, v = len(self.h), len(self.weight)
        target = torch.where(self.here, self.target, 0)
        start = target // WIDTH * WIDTH
        width = (v - start).clamp(max=WIDTH)
        at = n * start + torch.arange(n) * width + target - start
        self.buffer[at[self.here]] = 0.0

    def finished(self) -> tuple[Tensor, Tensor]:
        """Gradients of hidden and weight, in full precision; empty where they are not needed."""
        return self.dh, self.dw
