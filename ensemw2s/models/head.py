"""The output layer of a causal LM, applied to chosen tokens only and to a part of them at a time.

With a large vocabulary and long prompts, logits of prompt tokens are most of the work and of the memory, and no loss
needs them. Whatever a model does with logits after its output layer (soft caps, scales) it still does itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ensemw2s.models.loading import logits_vocabulary

log = logging.getLogger(__name__)

SMALL = 4096
"""Vocabularies below this are read at all tokens: it costs little, and the sums are the same to the last bit."""

AT_ONCE = 2**25
"""Logits that a loss has at a time (128 MB in float32, and a few copies); where there are more, they are made anew in
the backward pass, part by part."""

Pair = tuple[torch.Tensor, torch.Tensor]


class Head:
    """The output layer of a model in training.

    Attributes:
        chooses: Whether the model can be asked for logits of chosen tokens; else they are taken out of all.
        vocabulary: Logits of a token.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, sharded: bool = False) -> None:
        """Tries on a few tokens whether the model gives the same logits, if its vocabulary is worth it.

        Args:
            model: Whole, before DeepSpeed divides it.
            sharded: Its weights will be divided (ZeRO 3): the output layer is then applied once.
        """
        self._model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.vocabulary = logits_vocabulary(model)
        self.chooses = self._anew = False
        self._sharded, self._output = sharded, cast(Any, None)  # the type of what its layers give
        if self.vocabulary >= SMALL:
            self._try()

    def logits(self, run: Callable[[], Any], chosen: torch.Tensor) -> torch.Tensor:
        """Logits at chosen tokens, `[chosen, vocabulary]`, row after row.

        Args:
            run: A forward pass of the model.
            chosen: `[batch, seq]`, bool.
        """
        if not self.chooses:
            return run().logits[chosen]
        with self._given(lambda hidden: hidden[chosen].unsqueeze(0)):
            return run().logits[0]

    def losses(self, run: Callable[[], Any], chosen: torch.Tensor, loss: Callable[[torch.Tensor, slice], Pair]) -> Pair:
        """The sum over parts of the chosen tokens; if they are many, logits are made anew in the backward pass.

        Args:
            run: A forward pass of the model.
            chosen: `[batch, seq]`, bool.
            loss: From logits `[part, vocabulary]` and which of the chosen tokens these are, two scalars.
        """
        size, count = max(1, AT_ONCE // self.vocabulary), int(chosen.sum())
        if count <= size:
            return loss(self.logits(run, chosen), slice(None))
        source = self._hidden(run, chosen) if self._anew else self.logits(run, chosen)

        def of(part: torch.Tensor, which: slice) -> Pair:
            return loss(self._finish(part) if self._anew else part, which)

        cuts = [slice(start, start + size) for start in range(0, count, size)]
        pairs = [checkpoint(of, source[cut], cut, use_reentrant=False) for cut in cuts]
        return torch.stack([pair[0] for pair in pairs]).sum(), torch.stack([pair[1] for pair in pairs]).sum()

    def _hidden(self, run: Callable[[], Any], chosen: torch.Tensor) -> torch.Tensor:
        """What the output layer would get of chosen tokens, `[chosen, width]`."""
        found: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            found.append(hidden[chosen])
            return hidden[:1, :1]  # the model goes on to logits that nobody reads

        with self._given(keep):
            run()
        return found[0]

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """From `[part, width]` to logits: the model's own forward pass, without its layers."""
        layers = self._model.base_model
        layers.forward = lambda *_, **__: self._output(last_hidden_state=hidden.unsqueeze(0))
        try:  # not called as a module: hooks around the whole model are for whole passes
            ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
            logits: torch.Tensor = self._model.forward(input_ids=ids, use_cache=False).logits[0]
        finally:
            del layers.forward
        return logits

    @contextmanager
    def _given(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """The output layer gets something else, after DeepSpeed's hooks, which are older."""

        def before(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (change(args[0]), *args[1:])

        hook = self._model.get_output_embeddings().register_forward_pre_hook(before)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def _try(self) -> None:
        """Finds out whether logits of chosen tokens are those that the model gives there otherwise."""
        model = self._model
        ids = torch.arange(4, device=model.device).view(2, 2)
        chosen = torch.tensor([[False, True], [True, True]], device=model.device)

        def run() -> Any:
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

        def remember(_: torch.nn.Module, __: Any, out: Any) -> None:
            self._output = type(out)

        training, hook = model.training, model.base_model.register_forward_hook(remember)
        model.eval()
        whole = run().logits[chosen]
        hook.remove()
        self.chooses = True  # for the trial
        self.chooses, reason = _same(lambda: self.logits(run, chosen), whole)
        if not self.chooses:
            log.warning(
                "%s computes the logits of all tokens, not only of answers, which takes more time and memory: %s",
                type(model).__name__,
                reason,
            )
        elif not self._sharded and self._output is not None:
            self._anew = _same(lambda: self._finish(self._hidden(run, chosen)), whole)[0]
        model.train(training)


def _same(make: Callable[[], torch.Tensor], whole: torch.Tensor) -> tuple[bool, str]:
    """Whether logits are these but for the rounding of bfloat16, and what is wrong else."""
    try:
        found = make()
    except Exception as error:  # whatever an architecture does with sizes that it does not expect
        return False, str(error)
    if found.shape != whole.shape:
        return False, f"they have the shape {tuple(found.shape)}"
    same = bool((found.float() - whole.float()).abs().max() <= 0.02 * whole.float().abs().max())
    return same, "they are others there"
