"""The embedded family for machines with no model hub: a tokenizer trained on the corpus, and small Llama models.

Text goes in, a byte-level BPE tokenizer comes out; a tokenizer goes in, randomly initialised `tiny-weak` and
`tiny-strong` models come out. Their pre-training is an ordinary training stage (see `training`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ensemw2s.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]


@dataclass(frozen=True)
class TinyArchitecture:
    """Sizes of a tiny Llama model."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int


TINY_ARCHITECTURES = {
    "tiny-weak": TinyArchitecture(hidden=32, layers=2, heads=4, feed_forward=86),
    "tiny-strong": TinyArchitecture(hidden=64, layers=3, heads=4, feed_forward=172),
}
CONTEXT = 512


def train_tokenizer(documents: Iterable[str], vocabulary: int, also: str = "") -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer; what it saw often becomes one token, and decoding gives the text back.

    Args:
        documents: Text of the domain; only the bytes that occur in it get tokens, others become `<unk>`.
        vocabulary: Largest number of tokens, the four special ones included.
        also: Characters whose bytes get tokens, too, wherever they occur.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(also)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(set("".join(alphabet))),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = _bos_first()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def is_tiny_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is one of the tiny family."""
    return tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == SPECIAL_TOKENS


def add_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a tokenizer of the tiny family put BOS first, as in all its training; a saved one may lack that."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and tokenizer("")["input_ids"] != [SPECIAL_TOKENS.index("<bos>")]:
        backend.post_processor = _bos_first()


def _bos_first() -> processors.TemplateProcessing:
    bos = SPECIAL_TOKENS[1]
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, SPECIAL_TOKENS.index(bos))]
    )


def tiny_parameters(name: str, vocabulary: int) -> int:
    """Number of weights of an embedded model.

    Args:
        name: tiny-weak or tiny-strong.
        vocabulary: Tokens of its tokenizer; the embedding is the output layer, too.
    """
    sizes = TINY_ARCHITECTURES[name]
    attention, gated = 4 * sizes.hidden**2, 3 * sizes.hidden * sizes.feed_forward
    norms = (2 * sizes.layers + 1) * sizes.hidden
    return sizes.layers * (attention + gated) + norms + vocabulary * sizes.hidden


def create_tiny(name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A randomly initialised model of the tiny family; the same seed gives the same weights.

    Raises:
        ModelError: If the name is not one of the family.
    """
    if name not in TINY_ARCHITECTURES:
        raise ModelError(f"{name} is not an embedded model, available: {', '.join(TINY_ARCHITECTURES)}")
    import torch
    from transformers import LlamaForCausalLM

    config = tiny_config(name, len(tokenizer))
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def tiny_config(name: str, vocabulary: int) -> LlamaConfig:
    """The config of an embedded model whose tokenizer has so many tokens."""
    from transformers import LlamaConfig

    sizes = TINY_ARCHITECTURES[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        initializer_range=0.1,  # the usual 0.02 is for wide layers; here it makes learning take twice as long
    )
