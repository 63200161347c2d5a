"""The ensemble as one Hugging Face causal LM: token ids in, log-probabilities of the combination out (as logits).

This is the one model interface of the project: `generate()`, streamers and evaluation harnesses see an ordinary
model, and the engine, which is faster, is held to it by tests.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from ensemw2s.ensemble.cache import EnsembleCache
from ensemw2s.ensemble.combine import Rule, combine, normalised_weights
from ensemw2s.ensemble.load import Parts, damaged, load_parts
from ensemw2s.ensemble.members import AdapterMember, MemberModel
from ensemw2s.errors import ModelError
from ensemw2s.models.adapters import has_adapters
from ensemw2s.models.head import Head
from ensemw2s.models.loading import context_length, logits_vocabulary, text_config


class EnsembleModelConfig(PreTrainedConfig):
    """What transformers needs to know of the whole; the members keep their own configs."""

    model_type = "ensemw2s"

    vocab_size: int = 0
    max_position_embeddings: int | None = None
    num_members: int = 0
    combine: str = "probability"
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class EnsembleForCausalLM(PreTrainedModel, GenerationMixin):
    """Experts that vote at every token, behind the interface of a Hugging Face causal LM.

    The members read the same tokens; `forward` gives the combination's log-probabilities as `logits`, always float32.
    Adapters are switched by member, so one object serves one thread at a time.

    Attributes:
        weights: The members' weights, divided by their sum.
        rule: Combination rule.
        temperatures: What each member's logits are divided by; empty where no member has another than 1.
        names: Names of the members.
        vocabulary: Size of the distributions.
        context: Longest sequence that every member takes, in tokens; None without a limit.
    """

    config_class = EnsembleModelConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        models: Sequence[MemberModel],
        weights: Sequence[float],
        rule: Rule = "probability",
        names: Sequence[str] | None = None,
        temperatures: Sequence[float] = (),
    ) -> None:
        """Makes one model of several; no weight is copied, the members are put into evaluation mode.

        Args:
            models: Full models, PEFT models (their active adapters), or `AdapterMember`s that share a PEFT model.
            weights: A number of at least 0 for each; a member of weight 0 runs but does not vote.
            rule: `probability`, `log_probability` or `vote`.
            names: Names for messages and reports; default: member-0, member-1, ….
            temperatures: A positive number for each member, by which its logits are divided; empty: 1.

        Raises:
            ModelError: If there is no member, weights or temperatures do not fit, vocabularies differ, or a model
                cannot be a member.
        """
        names = list(names) if names is not None else [f"member-{i}" for i in range(len(models))]
        if not models:
            raise ModelError("an ensemble needs at least one member")
        if not len(models) == len(weights) == len(names):
            raise ModelError(f"{len(models)} models, {len(weights)} weights and {len(names)} names do not match")
        if len(temperatures) not in (0, len(models)) or not all(0 < t < math.inf for t in temperatures):
            raise ModelError(f"temperatures are {list(temperatures)}; expected {len(models)} positive numbers, or none")
        shares = normalised_weights(weights)
        networks = [_network(name, model) for name, model in zip(names, models, strict=True)]
        super().__init__(_shared_config(names, networks, rule))
        self.names, self.weights, self.rule = names, shares, rule
        self.temperatures = [float(t) for t in temperatures] if any(t != 1 for t in temperatures) else []
        self.vocabulary: int = self.config.vocab_size
        self.context: int | None = self.config.max_position_embeddings
        unique = list({id(network): network for network in networks}.values())
        self.networks = torch.nn.ModuleList(unique)  # named so: `members` would hide that several can share one
        self._network_of = [next(i for i, other in enumerate(unique) if other is network) for network in networks]
        self._adapter_of = [_adapter(model) for model in models]
        self._accepts = [set(inspect.signature(_bare(network).forward).parameters) for network in networks]
        self._heads: dict[int, Head] = {}
        # `post_init` is not called: it would initialise weights.
        self.all_tied_weights_keys: dict[str, str] = {}
        self.eval()

    @property
    def num_members(self) -> int:
        """How many members there are."""
        return len(self.names)

    def parts(self) -> list[tuple[PreTrainedModel, PeftModel | None, str | None]]:
        """Each member's transformers model, the PEFT model around it if there is one, and its adapters' name."""
        networks = [self.networks[i] for i in self._network_of]
        return [
            (_bare(network), network if isinstance(network, PeftModel) else None, adapter)
            for network, adapter in zip(networks, self._adapter_of, strict=True)
        ]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        rounds: int | None = None,
        verify: bool = True,
    ) -> EnsembleForCausalLM:
        """The model of a saved ensemble; `artifact.Ensemble.from_pretrained` also gives its tokenizer and manifest.

        Args and errors are those of `load.load_parts`.
        """
        return cls.of_parts(load_parts(path, device=device, dtype=dtype, rounds=rounds, verify=verify))

    @classmethod
    def of_parts(cls, parts: Parts) -> EnsembleForCausalLM:
        """The model of a saved ensemble that has been read.

        Raises:
            ArtifactError: If its members cannot vote together, or know fewer tokens than its tokenizer.
        """
        try:
            model = cls(parts.models, parts.weights, parts.rule, parts.names, parts.temperatures)
        except ModelError as error:
            raise damaged(parts.folder, error) from error
        if model.vocabulary < len(parts.tokenizer):
            raise damaged(
                parts.folder,
                f"its members know {model.vocabulary} tokens, its tokenizer has {len(parts.tokenizer)}",
            )
        return model

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuses: `artifact.save_ensemble` saves an ensemble, from its members' folders."""
        raise ModelError("an ensemble is saved by ensemw2s.ensemble.artifact.save_ensemble, from its members' folders")

    def new_cache(self) -> EnsembleCache:
        """An empty cache for `past_key_values`."""
        return EnsembleCache([text_config(self.networks[i]) for i in self._network_of])

    def member_log_probs(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        logits_to_keep: int = 0,
        chosen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One forward pass of every member.

        Args:
            input_ids: `[batch, seq]`, int64; with a cache only the tokens that it has not seen.
            attention_mask: `[batch, cached + seq]`, 1 for tokens, 0 for padding on either side; default: no padding.
            position_ids: `[batch, seq]`, int64; default: counted from the attention mask.
            past_key_values: Cache to read and to extend in place; default: no cache.
            logits_to_keep: How many of the last positions to give; 0: all.
            chosen: `[batch, seq]`, bool: of these, which to give, row after row as one; default: all.

        Returns:
            `[members, batch, kept, vocabulary]`, or `[members, 1, chosen, vocabulary]`: float32 log-probabilities.
        """
        if position_ids is None:
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = _positions(input_ids, attention_mask, cached)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": past_key_values is not None,
            "logits_to_keep": logits_to_keep,
        }
        outputs = []
        for index in range(self.num_members):
            cache = past_key_values.members[index] if past_key_values is not None else None
            outputs.append(self._member(index, {**inputs, "past_key_values": cache}, logits_to_keep, chosen))
        return torch.stack(outputs)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[torch.Tensor, ...]:
        """The combination's next-token distributions.

        Args:
            input_ids: `[batch, seq]`, int64; with a cache only the tokens that it has not seen.
            attention_mask: `[batch, cached + seq]`, 1 for tokens and 0 for padding.
            position_ids: `[batch, seq]`, int64; default: counted from the attention mask.
            past_key_values: From an earlier call, or `new_cache()`.
            labels: `[batch, seq]`, int64, the input ids with -100 where there is no loss; shifted here.
            use_cache: Whether to return a cache; default: yes.
            logits_to_keep: How many of the last positions to give; 0, or with labels: all.
            return_dict: False: a tuple.

        Returns:
            `logits` `[batch, kept, vocabulary]`, float32 log-probabilities; `loss`, the mean negative
            log-likelihood in nats per label, if there are labels; `past_key_values` if there is a cache.
        """
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = self.new_cache()
        elif past_key_values is not None:
            _check_cache(past_key_values)
        members = self.member_log_probs(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=0 if labels is not None else logits_to_keep,
        )
        logits = combine(members, self.weights, self.rule)
        loss = None
        if labels is not None:
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            loss = torch.nn.functional.nll_loss(flat, labels[:, 1:].reshape(-1).to(flat.device), ignore_index=-100)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    def _member(self, index: int, inputs: Mapping[str, object], kept: int, chosen: torch.Tensor | None) -> torch.Tensor:
        """One member's log-probabilities at the last `kept` positions, 0: at every one; of these, at chosen ones."""
        network, adapter = self.networks[self._network_of[index]], self._adapter_of[index]
        if adapter is not None:
            assert isinstance(network, PeftModel)
            if network.active_adapters != [adapter]:
                network.set_adapter(adapter, inference_mode=True)
        # Older architectures count positions themselves and give all logits.
        accepted = {key: value for key, value in inputs.items() if key in self._accepts[index]}
        home = _bare(network).device  # members may be on several
        accepted = {key: value.to(home) if torch.is_tensor(value) else value for key, value in accepted.items()}
        if chosen is not None and self._head(index).chooses:
            accepted.pop("logits_to_keep", None)
            run = partial(_bare(network), **accepted, return_dict=True)
            logits = self._head(index).logits(run, chosen.to(home)).unsqueeze(0)
        else:
            logits = _bare(network)(**accepted, return_dict=True).logits
            logits = logits if "logits_to_keep" in accepted else logits[:, -kept:]
            if chosen is not None:
                logits = logits[chosen[:, -kept:].to(home)].unsqueeze(0)
        logits = logits.to(self.device).float()
        if self.temperatures and self.temperatures[index] != 1:
            logits = logits / self.temperatures[index]
        return torch.log_softmax(logits, dim=-1)

    def _head(self, index: int) -> Head:
        """A member's output layer, which is tried when it is first asked for chosen positions."""
        number = self._network_of[index]
        if number not in self._heads:
            self._heads[number] = Head(cast(PreTrainedModel | PeftModel, self.networks[number]))
        return self._heads[number]

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, object],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """Gives `generate()` an `EnsembleCache` where it would make a cache for one model."""
        given = model_kwargs.get("past_key_values")
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ModelError(
                f"cache_implementation is {generation_config.cache_implementation!r}; an ensemble has only 'dynamic'"
            )
        if given is not None:
            _check_cache(given)._is_user_defined = True
            return True
        if generation_config.use_cache is False:
            return False
        model_kwargs["past_key_values"] = cache = self.new_cache()
        if generation_config.is_assistant:
            cache.activate_past_recording()
        return True


def as_ensemble(model: EnsembleForCausalLM | PreTrainedModel | PeftModel) -> EnsembleForCausalLM:
    """A single causal LM as an ensemble of one; an ensemble as it is."""
    return model if isinstance(model, EnsembleForCausalLM) else EnsembleForCausalLM([model], [1.0])


def _network(name: str, model: MemberModel) -> PreTrainedModel | PeftModel:
    network = model.model if isinstance(model, AdapterMember) else model
    if isinstance(network, PeftModel):
        adapter = _adapter(model)
        if adapter not in network.peft_config:
            raise ModelError(
                f"{name}: adapter {adapter} is not in its model, available: {', '.join(network.peft_config)}"
            )
    elif has_adapters(network):
        raise ModelError(f"{name} is a base with adapters in its layers; pass its PeftModel or an AdapterMember")
    bare = _bare(network)
    if not bare.can_generate() or bare.config.is_encoder_decoder:
        raise ModelError(f"{name} is a {type(bare).__name__}; expected a causal language model")
    if "past_key_values" not in inspect.signature(bare.forward).parameters:
        raise ModelError(f"{name} is a {type(bare).__name__}, which has no key/value cache and cannot be a member")
    return network


def _adapter(model: MemberModel) -> str | None:
    if isinstance(model, AdapterMember):
        return model.adapter
    return str(model.active_adapter) if isinstance(model, PeftModel) else None


def _bare(network: torch.nn.Module) -> Any:
    """The transformers model itself: PEFT's adapters sit inside its layers, so its own forward uses them."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def _shared_config(names: list[str], networks: Sequence[torch.nn.Module], rule: Rule) -> EnsembleModelConfig:
    """Config of the whole; checks that the members have one vocabulary."""
    sizes = [logits_vocabulary(network) for network in networks]
    for name, size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            raise ModelError(
                f"{name} has a vocabulary of {size} tokens and {names[0]} one of {sizes[0]}; "
                "experts vote on token ids, so all members must have the same vocabulary"
            )
    contexts = [length for network in networks if (length := context_length(network)) is not None]
    first = _bare(networks[0]).generation_config
    return EnsembleModelConfig(
        vocab_size=sizes[0],
        max_position_embeddings=min(contexts) if contexts else None,
        num_members=len(names),
        combine=rule,
        pad_token_id=first.pad_token_id,
        bos_token_id=first.bos_token_id,
        eos_token_id=_end_tokens(networks),
    )


def _end_tokens(networks: Sequence[torch.nn.Module]) -> int | list[int] | None:
    """The tokens that end an answer: all that the generation config of any member names."""
    named = [_bare(network).generation_config.eos_token_id for network in networks]
    ends = [end for ids in named if ids is not None for end in ([ids] if isinstance(ids, int) else ids)]
    ends = list(dict.fromkeys(ends))
    return ends if len(ends) > 1 else next(iter(ends), None)


def _positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cached: int) -> torch.Tensor:
    """Positions that do not count padding, `[batch, seq]` (or `[1, seq]` where all rows have the same)."""
    length = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(cached, cached + length, device=input_ids.device).unsqueeze(0)
    positions = attention_mask.long().cumsum(dim=-1) - 1
    return positions.masked_fill(attention_mask == 0, 0)[:, -length:]


def _check_cache(cache: object) -> EnsembleCache:
    if not isinstance(cache, EnsembleCache):
        raise ModelError(f"past_key_values is a {type(cache).__name__}; an ensemble needs one made by new_cache()")
    return cache
