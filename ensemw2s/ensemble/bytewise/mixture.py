"""The mixture over bytes: models of different tokenizers in, answers and probabilities of texts out.

p(b | text) = Σ a_v p_v(b | text) over the voices v. A *voice* is the models of one tokenizer, mixed per token among
themselves. With more than one tokenizer this is another rule than mixing per token: a vote for each byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from ensemw2s.ensemble.bytewise.answers import ByteAnswer
from ensemw2s.ensemble.bytewise.prompts import Prompt, chat, encoded, heal
from ensemw2s.ensemble.bytewise.rows import ModelRows
from ensemw2s.ensemble.bytewise.tree import Rows, Tree, advance
from ensemw2s.ensemble.bytewise.utf8 import allowed, unfinished
from ensemw2s.ensemble.bytewise.vocabulary import END, ByteTable, token_bytes
from ensemw2s.ensemble.combine import normalised_weights
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.sampling import Sampling, choose, draws
from ensemw2s.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AnyPrompt: TypeAlias = str | Sequence[Mapping[str, str]] | Sequence[Prompt]
"""A text; a conversation, for the chat template of each tokenizer; or the prompt as each voice reads it."""


@dataclass(frozen=True)
class Voice:
    """The models of one tokenizer.

    Attributes:
        name: For messages.
        rows: The models.
        tokenizer: Their tokenizer.
        table: Bytes of its tokens.
        stop_ids: Tokens that end an answer.
        share: Its vote; those of all voices sum to 1.
    """

    name: str
    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    table: ByteTable
    stop_ids: Sequence[int]
    share: float


@dataclass(frozen=True)
class VoiceModel:
    """What a voice is made of.

    Attributes:
        model: Members of one tokenizer, combined by the rule `probability`.
        tokenizer: Their tokenizer.
        weight: Its vote, not normalised.
        stop_ids: Tokens that end an answer beside those that model and tokenizer name.
    """

    model: EnsembleForCausalLM
    tokenizer: PreTrainedTokenizerBase
    weight: float
    stop_ids: tuple[int, ...] = ()


@dataclass
class _Text:
    """A text that is being written or scored."""

    index: int
    trees: list[Tree | None]
    forced: list[int] | None
    uniform: np.ndarray
    answer: bytearray = field(default_factory=bytearray)
    ended: bool = False
    logprobs: list[float] = field(default_factory=list)
    voices: list[np.ndarray] = field(default_factory=list)
    choices: list[np.ndarray] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    dropped: np.ndarray = field(default_factory=lambda: np.zeros(0))
    passes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class ByteMixture:
    """Voices that predict the next byte together.

    Attributes:
        voices: The models of each tokenizer.
        epsilon: A voice's contexts with less than this share of its mass are dropped; 0 keeps all.
        contexts: Contexts that a voice keeps of one text at most.
        texts: Texts that are written at the same time.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        *,
        epsilon: float = 1e-3,
        contexts: int = 8,
        texts: int = 4,
        sit_out: bool = False,
    ) -> None:
        """Args: the voices; settings as above; whether a voice sits out that cannot spell a prompt (else an error)."""
        if not 0 <= epsilon < 1:
            raise ConfigError(f"epsilon is {epsilon}; expected at least 0 and less than 1, for example 0.001")
        if contexts < 2 or texts < 1:  # a dropped context that is read anew takes two rows
            raise ConfigError(f"contexts is {contexts} and texts is {texts}; expected at least 2 contexts and 1 text")
        shares = normalised_weights([voice.share for voice in voices])
        self.voices = list(voices)
        self.shares = np.array(shares)
        self.epsilon, self.contexts, self.texts, self.sit_out = epsilon, contexts, texts, sit_out

    @classmethod
    def of_models(
        cls,
        models: Sequence[VoiceModel],
        *,
        epsilon: float = 1e-3,
        contexts: int = 8,
        texts: int = 4,
        sit_out: bool = False,
    ) -> ByteMixture:
        """A mixture of models in memory.

        Raises:
            ModelError: If a model's rule is not `probability`, or its tokenizer's tokens have no bytes that are known.
        """
        voices = []
        for part in models:
            if part.model.rule != "probability":
                raise ModelError(
                    f"{', '.join(part.model.names)} are combined by {part.model.rule}; "
                    "a mixture over bytes knows the rule probability only"
                )
            stop_ids = _stop_ids(part)
            tokens = token_bytes(part.tokenizer)
            table = ByteTable([None if index in stop_ids else token for index, token in enumerate(tokens)])
            if part.model.vocabulary < table.vocabulary:
                raise ModelError(
                    f"{part.model.names[0]} knows {part.model.vocabulary} tokens, its tokenizer has {table.vocabulary}"
                )
            voices.append(
                Voice(
                    name=" + ".join(part.model.names),
                    rows=ModelRows(part.model, contexts * texts),
                    tokenizer=part.tokenizer,
                    table=table,
                    stop_ids=stop_ids,
                    share=part.weight,
                )
            )
        return cls(voices, epsilon=epsilon, contexts=contexts, texts=texts, sit_out=sit_out)

    def generate(
        self, prompts: Sequence[AnyPrompt], *, max_new_bytes: int, sampling: Sampling | None = None, seed: int = 0
    ) -> list[ByteAnswer]:
        """Answers prompts; every answer is valid UTF-8.

        Args:
            prompts: Texts, conversations, or prompts as each voice reads them.
            max_new_bytes: Longest answer, in bytes of UTF-8; a character that does not fit is left out.
            sampling: How a byte is chosen; default: greedy. Temperature and cut-offs are over bytes, not tokens.
            seed: Of the random numbers; they depend on the prompt, too.

        Returns:
            An answer for each prompt.

        Raises:
            DataError: If a prompt cannot be read.
        """
        if max_new_bytes < 1:
            raise ConfigError(f"max_new_bytes is {max_new_bytes}; expected at least 1")
        chosen = sampling or Sampling()
        uniform = [draws(seed, _identity(prompt), max_new_bytes + 1) for prompt in prompts]
        return self._run(prompts, [None] * len(prompts), uniform, chosen, max_new_bytes)

    def score(self, prompts: Sequence[AnyPrompt], answers: Sequence[str], *, end: bool = True) -> list[ByteAnswer]:
        """Probabilities of given answers.

        Args:
            prompts: Texts, conversations, or prompts as each voice reads them.
            answers: One for each.
            end: Whether the answer's end is scored, too.

        Raises:
            DataError: If a prompt cannot be read, an answer is too long for a model, or no voice can spell it.
        """
        if len(prompts) != len(answers):
            raise DataError(f"{len(prompts)} prompts and {len(answers)} answers; expected one for each")
        forced: list[list[int] | None] = [[*encoded(answer), *([END] if end else [])] for answer in answers]
        none = [np.zeros(0)] * len(prompts)
        longest = max((len(symbols or []) for symbols in forced), default=0)
        return self._run(prompts, forced, none, Sampling(), longest + 1)

    def _run(
        self,
        prompts: Sequence[AnyPrompt],
        forced: Sequence[list[int] | None],
        uniform: Sequence[np.ndarray],
        sampling: Sampling,
        longest: int,
    ) -> list[ByteAnswer]:
        """Writes or scores all texts, as many at a time as there are rows for."""
        answers: dict[int, ByteAnswer] = {}
        running: list[_Text] = []
        begun = 0
        try:
            while begun < len(prompts) or running:
                while begun < len(prompts) and len(running) < self.texts:
                    text = _Text(begun, [], forced[begun], uniform[begun])
                    running.append(text)
                    self._begin(text, prompts[begun])
                    begun += 1
                taken = [self._next(text, sampling, longest) for text in running]
                live = [(text, byte) for text, byte in zip(running, taken, strict=True) if byte is not None]
                for text in {t.index: t for t in running}.values():
                    if all(text is not other for other, _ in live):
                        answers[text.index] = self._close(text)
                running = [text for text, _ in live]
                self._advance(live)
        finally:
            for text in running:  # only after an error
                self._free(text)
        return [answers[index] for index in range(len(prompts))]

    def _begin(self, text: _Text, prompt: AnyPrompt) -> None:
        for number, voice in enumerate(self.voices):
            tree = Tree(voice.table, voice.stop_ids, epsilon=self.epsilon, most=self.contexts, name=voice.name)
            text.trees.append(tree)
            try:
                own = _prompt_of(prompt, voice, number)
                tree.begin(voice.rows, own.ids)
                for byte in own.tail:
                    advance(voice.rows, [tree], [byte])
            except DataError:
                voice.rows.free([context.row for context in tree.contexts])
                tree.contexts = []
                if not self.sit_out:
                    raise
                text.trees[number] = None
            tree.log_mass, tree.dropped, tree.passes = 0.0, 0.0, 0
        if all(tree is None for tree in text.trees):
            raise DataError(f"no model can read the prompt {str(prompt)[-60:]!r}")
        text.dropped, text.passes = np.zeros(len(self.voices)), np.zeros(len(self.voices), dtype=np.int64)

    def _next(self, text: _Text, sampling: Sampling, longest: int) -> int | None:
        """The next byte of a text; None where it is done. What the voices say of it is noted."""
        forced = text.forced
        if forced is not None and len(text.logprobs) == len(forced):
            return None
        if forced is None and (len(text.answer) >= longest or self._full(text)):
            return None
        if forced is not None and self._full(text):
            begun = bytes(text.answer[:40]).decode(errors="ignore")
            raise DataError(f"the answer {begun!r}… and its prompt are longer than a model can read")
        each = np.full((len(self.voices), END + 1), np.nan)
        for number, tree in enumerate(text.trees):
            if tree is not None:
                masses = tree.masses()
                each[number] = masses / masses.sum()
        speaking = [number for number, tree in enumerate(text.trees) if tree is not None]
        shares = self.shares[speaking] / self.shares[speaking].sum()
        mixed = shares @ each[speaking]
        if forced is not None:
            symbol = forced[len(text.logprobs)]
        else:
            possible = mixed * allowed(unfinished(bytes(text.answer)))
            if possible.sum() <= 0:
                return None
            with np.errstate(divide="ignore"):
                scores = torch.from_numpy(np.log(possible / possible.sum())).float().unsqueeze(0)
            uniform = torch.from_numpy(text.uniform[len(text.logprobs) : len(text.logprobs) + 1])
            symbol = int(choose(scores, sampling, uniform)[0])
        if symbol != END:
            for number in speaking:
                self._settle(text, number, symbol, each)
            mixed = shares @ each[speaking]
        with np.errstate(divide="ignore"):
            text.logprobs.append(float(np.log(mixed[symbol])))
            text.voices.append(np.log(np.nan_to_num(each[:, symbol])))
        text.likeliest.append(int(mixed.argmax()))
        text.choices.append(np.where(np.isnan(each[:, 0]), -1, np.nan_to_num(each).argmax(axis=1)))
        if symbol == END:
            text.ended = True
            return None
        for number in speaking:
            if not each[number, symbol] > 0:  # its tokens cannot spell this: it sits out from here on
                self._silence(text, number)
        if all(tree is None for tree in text.trees):
            raise DataError(f"no model has tokens for byte 0x{symbol:02x} behind {bytes(text.answer[-40:])!r}")
        text.answer.append(symbol)
        return symbol

    def _settle(self, text: _Text, number: int, symbol: int, each: np.ndarray) -> None:
        """Corrects a voice's probability of the byte that comes by what it finds in contexts that it had dropped."""
        tree = text.trees[number]
        assert tree is not None
        before = tree.masses()
        found, lived = tree.settle(self.voices[number].rows, symbol)
        if lived > 0:
            each[number, symbol] = (before[symbol] + found) / (before.sum() + lived)

    def _advance(self, live: Iterable[tuple[_Text, int]]) -> None:
        texts = list(live)
        for number, voice in enumerate(self.voices):
            mine = [(tree, byte) for text, byte in texts if (tree := text.trees[number]) is not None]
            advance(voice.rows, [tree for tree, _ in mine], [byte for _, byte in mine])

    def _close(self, text: _Text) -> ByteAnswer:
        self._free(text)
        whole = len(text.answer) - len(unfinished(bytes(text.answer)))
        kept = whole + int(text.ended)
        voices = len(self.voices)
        return ByteAnswer(
            text=bytes(text.answer[:whole]).decode(),
            ended=text.ended,
            logprobs=np.array(text.logprobs[:kept]),
            voice_logprobs=np.array(text.voices[:kept]).reshape(kept, voices).T,
            choices=np.array(text.choices[:kept], dtype=np.int64).reshape(kept, voices).T,
            shares=self.shares,
            dropped=text.dropped,
            passes=text.passes,
            likeliest=np.array(text.likeliest[:kept], dtype=np.int64),
        )

    def _free(self, text: _Text) -> None:
        for number, tree in enumerate(text.trees):
            if tree is not None:
                self._silence(text, number)

    def _silence(self, text: _Text, number: int) -> None:
        """A voice says no more on this text."""
        tree = text.trees[number]
        assert tree is not None
        if len(text.dropped):
            text.dropped[number], text.passes[number] = tree.dropped, tree.passes
        self.voices[number].rows.free([context.row for context in tree.contexts])
        text.trees[number] = None

    def _full(self, text: _Text) -> bool:
        return any(
            voice.rows.full(context.row)
            for voice, tree in zip(self.voices, text.trees, strict=True)
            if tree is not None
            for context in tree.contexts
        )


def _prompt_of(prompt: AnyPrompt, voice: Voice, number: int) -> Prompt:
    """A prompt as a voice reads it."""
    if isinstance(prompt, str):
        return heal(voice.tokenizer, voice.table, prompt)
    if own := [part for part in prompt if isinstance(part, Prompt)]:
        if len(own) <= number:
            raise DataError(f"a prompt is given for {len(own)} voices; expected one for each, {voice.name} included")
        return own[number]
    return chat(voice.tokenizer, [part for part in prompt if not isinstance(part, Prompt)])


def _identity(prompt: AnyPrompt) -> list[int]:
    """What the random numbers of a prompt depend on."""
    if isinstance(prompt, str):
        return list(encoded(prompt))
    parts = [[*part.ids, *part.tail] if isinstance(part, Prompt) else [*encoded(str(dict(part)))] for part in prompt]
    return [number for part in parts for number in part]


def _stop_ids(part: VoiceModel) -> list[int]:
    """The tokenizer's end of sequence, what the model's own generation config ends with, and what is asked for."""
    configured = part.model.config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [part.tokenizer.eos_token_id, *listed, *part.stop_ids] if i is not None})
