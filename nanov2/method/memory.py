"""What models wrote when they were measured, so that no figure's texts are sampled twice.

The same weights are asked the same questions again and again: of the start of a phase to find its best
temperature, then before training; of the last phase's end as the next one's start; of the base in every phase
that begins with it. Texts depend on nothing but the weights, their precision, the questions, the temperature
and the seed, so those that are kept are those that would be sampled.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from nanov2.distributed.checkpoints import fingerprint
from nanov2.distributed.ranks import derive_seed
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling

T = TypeVar("T")
MOST = 64_000_000  # characters that are kept


class Memory:
    """The lists of texts that were asked for last, about `most` characters in all, each under all that it
    depends on.

    It is of one process: a run that is stopped and goes on samples again. An engine's texts are not kept: it
    need not draw the same twice.
    """

    def __init__(self, most: int = MOST):
        self.most, self._lists, self._sizes = most, {}, {}
        self._hashes: WeakKeyDictionary[Model, tuple[list, list, str]] = WeakKeyDictionary()

    def recall(
        self, model: Model, asked: tuple, how: Sampling, seed: int, write: Callable[[], list[T]]
    ) -> list[T]:
        """What `write()` returns, which samples what is `asked` of the model as `how` and `seed` say.

        `asked` prints the same for the same questions on every rank. At temperature 0 no seed matters.
        """
        if model.engine is not None:
            return write()
        drawn = seed if how.temperature else 0
        key = derive_seed(self._hash(model), model.in_bf16, asked, how.temperature, how.max_tokens, drawn)
        found = self._lists.pop(key, None)
        if found is None:
            found = write()
            self._sizes[key] = len(repr(found))
        self._lists[key] = found  # as the last
        self._forget()
        return list(found)

    def _hash(self, model: Model) -> str:
        """That of the model's weights, which are read only where they have changed since."""
        parts = list(model.parameters())
        state = [(p.data_ptr(), p._version, p.dtype) for p in parts]
        same, before, found = self._hashes.get(model, ([], [], ""))
        if state != before or any(ref() is not p for ref, p in zip(same, parts, strict=True)):
            found = fingerprint(model)
            self._hashes[model] = [weakref.ref(p) for p in parts], state, found
        return found

    def _forget(self) -> None:
        """What was asked for longest ago, down to `most` characters; never the newest."""
        while len(self._lists) > 1 and sum(self._sizes.values()) > self.most:
            oldest = next(iter(self._lists))
            del self._lists[oldest], self._sizes[oldest]
