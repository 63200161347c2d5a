"""Decoding: requests come in at any time, tokens and generations go out; all prompts share each forward pass.

An optimisation of `EnsembleForCausalLM`, held to it by tests. A prompt takes a slot of a static cache, is read in
chunks between the steps of those that are being answered, and leaves its slot to the next one when it is done.
Speculation lets a pass check several tokens. Labelling, evaluation and serving use `Engine`, or `decode` for a list of
prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ensemw2s.ensemble.choices import Chosen, choices_of_each, log_probs, score_prompt
from ensemw2s.ensemble.forward import MemberNetwork, make_groups, padded
from ensemw2s.ensemble.model import EnsembleForCausalLM, as_ensemble
from ensemw2s.ensemble.requests import Generation, Request, check_positive, check_request, longest_first, member_weights
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.sampling import draws
from ensemw2s.ensemble.schedule import Schedule
from ensemw2s.ensemble.score import MAX_SCORED_LOGITS
from ensemw2s.ensemble.speculation import Draft, Pace, Speculation, StepTokens, make_draft
from ensemw2s.errors import EnsemW2SError, ResourceError

log = logging.getLogger(__name__)

CHUNK = 512
"""Prompt tokens, of all slots together, that are read between two steps. Fewer let the other requests go on sooner."""


@dataclass(frozen=True)
class Update:
    """What a step did for one request.

    Attributes:
        key: What `submit` gave.
        token_ids: New tokens.
        generation: The whole answer, once it has ended.
        error: What went wrong with this request alone; it has left its slot.
    """

    key: int
    token_ids: list[int]
    generation: Generation | None = None
    error: Exception | None = None


@dataclass
class Counters:
    """What the engine has done so far.

    Attributes:
        steps: Forward passes of the ensemble that gave tokens.
        rows: Rows of these passes, added up.
        tokens: Tokens that came out.
        prompt_tokens: Tokens of prompts that were read.
        proposed: Tokens that a draft proposed.
        accepted: Of these, tokens that the ensemble would have chosen too.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of the proposed tokens that were accepted."""
        return self.accepted / self.proposed if self.proposed else None


class Engine:
    """Decodes requests of one ensemble, as many at a time as it has slots. For one thread: a server queues its calls.

    Attributes:
        counters: What it has done so far.
    """

    def __init__(
        self,
        model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
        *,
        slots: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        speculation: Speculation | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Makes the groups of members that share forward passes.

        Args:
            model: An ensemble, or one causal LM. Small full members are stacked: their weights become views.
            slots: Most requests in a forward pass.
            tokenizer: For stop strings.
            speculation: Drafts, if they are wanted.
            chunk: Prompt tokens that are read between two steps.

        Raises:
            ConfigError: If an option is out of range, or the draft cannot be used.
        """
        check_positive(slots=slots, chunk=chunk)
        self.model = as_ensemble(model)
        self.slots, self.tokenizer, self.chunk, self.speculation = slots, tokenizer, chunk, speculation
        self.groups = make_groups([MemberNetwork(*part) for part in self.model.parts()], slots)
        self.counters = Counters()
        self._draft: Draft | None = make_draft(speculation, self.model, self.groups, slots) if speculation else None
        self._pace = Pace(always=speculation is not None and speculation.always)
        self._order = torch.tensor(np.argsort([m for group in self.groups for m in group.members]))
        self._schedule = Schedule(slots, chunk, self._copy)
        self._next_key = 0

    @property
    def kinds(self) -> dict[str, str]:
        """How each member runs, by its name."""
        return {self.model.names[m]: group.kind for group in self.groups for m in group.members}

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._schedule.rows or self._schedule.waiting)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._schedule.rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._schedule.waiting)

    @property
    def speculating(self) -> bool | None:
        """Whether drafts pay at the moment; None without speculation."""
        return self._pace.speculate if self._draft else None

    def submit(self, request: Request, name: str = "prompt") -> int:
        """Takes a request. An error in it does not touch the requests that are under way.

        Args:
            request: The request.
            name: What its prompt is called in messages.

        Returns:
            A key for its updates.

        Raises:
            EnsemW2SError: If it cannot be decoded; see `check_request`.
            ResourceError: If there is no memory for its prompt and its longest answer.
        """
        sequence: list[int] = check_request(self.model, request, self.tokenizer is not None, name).tolist()
        self._reserve(len(sequence) + request.max_new_tokens, name)
        greedy = request.sampling.greedy
        self._next_key += 1
        self._schedule.waiting.append(
            Running(
                key=self._next_key,
                request=request,
                sequence=sequence,
                prompt_length=len(sequence),
                weights=(
                    member_weights(self.model, request.weights) if request.weights is not None else self.model.weights
                ),
                uniform=None if greedy else draws(request.seed, sequence, request.max_new_tokens),
            )
        )
        return self._next_key

    def _reserve(self, length: int, name: str) -> None:
        """Takes the memory that a request may need, so that no step runs out of it."""
        length += self.speculation.tokens if self.speculation else 0
        try:
            for group in self.groups:
                group.reserve(length)
            if self._draft:
                self._draft.reserve(length)
        except (RuntimeError, MemoryError) as error:
            raise ResourceError(
                f"{name}: no memory for {length} tokens in each of {self.slots} slots; ask for shorter answers, or use "
                f"fewer slots (labeling.batch_size): {str(error).splitlines()[0]}"
            ) from error

    def release(self) -> None:
        """Frees the members' caches; the next request allocates them again. Nothing may be under way."""
        assert not self.busy, "requests under way need their caches"
        for group in self.groups:
            group.release()

    def cancel(self, key: int) -> Generation | None:
        """Ends a request and frees its slot. Returns what it has so far, or None if there is no such request."""
        row = self._schedule.remove(key)
        return row.generation("cancelled") if row is not None else None

    def so_far(self, key: int, start: int = 0) -> Generation:
        """What a request under way has so far, from its token `start` on.

        Raises:
            KeyError: If no such request has a slot.
        """
        for row in self._schedule.rows:
            if row.key == key:
                return row.generation("", start=start)
        raise KeyError(key)

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Reads a chunk of new prompts, then gives every request that has been read its next tokens."""
        self._schedule.admit()
        ended = self._read_prompts()
        return ended + self._answer() if self._schedule.ready else ended

    def run(
        self, requests: Sequence[Request], *, failed: dict[int, EnsemW2SError] | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Decodes requests to their end; gives each with its index as soon as it is done.

        They begin in the order of `longest_first`.

        Args:
            requests: The requests.
            failed: Takes the errors of those that cannot be decoded, by index; default: the first error is raised.

        Raises:
            EnsemW2SError: If a request cannot be decoded; see `check_request`. Nothing has been decoded by then.
            Exception: What went wrong with a request in a step.
        """
        keys: dict[int, int] = {}
        wrong: dict[int, EnsemW2SError] = {}
        try:
            for i in longest_first(requests):
                try:
                    keys[self.submit(requests[i], f"prompt {i}")] = i
                except EnsemW2SError as error:
                    wrong[i] = error
            if wrong and failed is None:
                raise wrong[min(wrong)]
            if failed is not None:
                failed.update(wrong)
            while keys:
                for update in self.step():
                    if update.error is not None:
                        raise update.error
                    if update.generation is not None and update.key in keys:
                        yield keys.pop(update.key), update.generation
        finally:
            for key in keys:  # of an error, or of a caller who has seen enough
                self.cancel(key)

    def _read_prompts(self) -> list[Update]:
        """Reads a chunk. Returns the ends of requests that want no answer, or whose prompts cannot be scored."""
        rows = self._schedule.reading
        if not rows:
            return []
        scoring = [i for i, row in enumerate(rows) if row.request.prompt_scores is not None]
        most = max(1, self.chunk // len(rows))
        if scoring:
            numbers = len(rows) * self.model.vocabulary * (self.model.num_members + 1)
            most = max(1, min(most, MAX_SCORED_LOGITS // numbers))
        ids, counts = padded([row.sequence[row.read : row.read + min(row.unread_prompt, most)] for row in rows])
        failed: dict[int, Exception] = {}
        if max(counts) > 0:
            starts = [row.read for row in rows]
            if scoring:
                parts = [group.logits(ids, starts, counts, self._schedule.ready) for group in self.groups]
                members = log_probs(parts, self._order, self.model.temperatures)
                for i in scoring:
                    try:
                        if counts[i]:
                            rows[i].scored.append(score_prompt(self.model, rows[i], members[:, i, : counts[i]]))
                    except Exception as error:
                        failed[rows[i].key] = error
            else:
                for group in self.groups:
                    group.read(ids, starts, counts, self._schedule.ready)
            for row, count in zip(rows, counts, strict=True):
                row.read += count
            self.counters.prompt_tokens += sum(counts)
        self._schedule.finish_reading()
        ended = [Update(key, [], error=error) for key, error in failed.items()]
        ended += [
            Update(row.key, [], row.generation("length"))
            for row in self._schedule.answering
            if row.request.max_new_tokens == 0 and row.key not in failed
        ]
        for update in ended:
            self._schedule.remove(update.key)
        return ended

    def _answer(self) -> list[Update]:
        rows = self._schedule.answering
        with self._pace.timed(len(rows)) if self._draft else nullcontext(StepTokens()) as measured:
            drafts = self._propose(rows)
            ids, counts = padded([[row.sequence[-1], *draft] for row, draft in zip(rows, drafts, strict=True)])
            parts = [group.logits(ids, [row.read for row in rows], counts) for group in self.groups]
            members = log_probs(parts, self._order, self.model.temperatures)
            updates, ended = [], []
            for slot, chosen in enumerate(choices_of_each(self.model, rows, members)):
                update = self._update(rows[slot], drafts[slot], chosen)
                updates.append(update)
                if update.generation is not None or update.error is not None:
                    ended.append(slot)
            produced = sum(len(update.token_ids) for update in updates)
            measured.tokens = produced
        self.counters.steps += 1
        self.counters.rows += len(rows)
        self.counters.tokens += produced
        self.counters.proposed += sum(map(len, drafts))
        for slot in reversed(ended):
            self._schedule.release(slot)
        return updates

    def _propose(self, rows: list[Running]) -> list[list[int]]:
        """Drafts; none where they cannot be made, because the answers do not need them."""
        if self._draft is not None and self._pace.speculate:
            try:
                drafts = self._draft.propose(rows)
                return [draft if row.request.draftable else [] for row, draft in zip(rows, drafts, strict=True)]
            except Exception:
                log.warning("a step goes on without drafts", exc_info=True)
        return [[]] * len(rows)

    def _update(self, row: Running, draft: list[int], chosen: Chosen | Exception) -> Update:
        """What a step did for a row. An error in it is the row's own."""
        if isinstance(chosen, Exception):
            return Update(row.key, [], error=chosen)
        try:
            return Update(row.key, *self._take(row, draft, chosen))
        except Exception as error:
            return Update(row.key, [], error=error)

    def _take(self, row: Running, draft: list[int], chosen: Chosen) -> tuple[list[int], Generation | None]:
        """Keeps the tokens that the draft has right, and the one after them."""
        new: list[int] = []
        for place in range(len(draft) + 1):
            token = chosen.tokens[place]
            new.append(token)
            row.sequence.append(token)
            row.records.append((chosen.records, chosen.slot, place))
            row.read += 1
            if row.request.guide is not None:
                row.request.guide.take(token)
            reason, stop = row.ended(self.tokenizer)
            accepted = place < len(draft) and draft[place] == token
            self.counters.accepted += accepted
            if reason:
                return new, row.generation(reason, stop)
            if not accepted:
                break
        return new, None

    def _copy(self, source: int, target: int) -> None:
        """What has been read in a slot, in the caches of members and drafts."""
        for group in self.groups:
            group.move(source, target)
        if self._draft:
            self._draft.move(source, target)
