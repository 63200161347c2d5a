"""What an endpoint hosts and what it allows: options or the arguments of a Serve config come in, typed settings go out.

Apart from the app because they are checked on the command line before Ray starts, and by Serve where `serve deploy`
reads a file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import PositiveInt, Section, raise_all

FRONT = "front"
"""Name of the deployment that speaks HTTP."""

Seconds = Annotated[float, Field(gt=0)]


class HostedSettings(Section):
    """One model behind the endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="What requests call it.")
    path: str = Field(description="Folder of an ensemble, a model or adapters; or a hub id.")
    version: str = Field("", description="Changes with the folder's content; replicas then load it again.")
    slots: PositiveInt = Field(16, description="Most requests in a forward pass of a replica.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 on GPUs that have it.")
    speculation: str = Field("none", min_length=1, description="How drafts are made: see labeling.speculation.")
    prompt_template: str | None = Field(
        None, description="Template around a chat message; default: that of the run that the model is from."
    )
    chat_template: bool | None = Field(
        None,
        description="Whether to use the tokenizer's chat template; default: as the model's run did, or if it has one.",
    )
    min_replicas: PositiveInt = Field(1, description="Replicas that are always up.")
    max_replicas: PositiveInt = Field(1, description="Replicas under load.")
    scale_up_after: Seconds = Field(
        30.0, description="Seconds with more requests than slots after which a replica is added."
    )
    scale_down_after: Seconds = Field(
        600.0, description="Seconds with fewer requests than slots after which a replica is removed."
    )
    cpus: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs per replica.")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs per replica.")

    @model_validator(mode="after")
    def _replicas_in_order(self) -> HostedSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas {self.min_replicas}")
        return self


class Limits(Section):
    """What a request may ask for, and how much there may be at a time."""

    body_bytes: PositiveInt = Field(2**20, description="Most bytes of a request's body.")
    prompt_tokens: PositiveInt = Field(8192, description="Most tokens of a prompt.")
    max_tokens: PositiveInt = Field(1024, description="Most tokens of an answer.")
    prompt_bytes: PositiveInt = Field(
        2**17, description="Most bytes of a prompt's text; what has more is refused before it is tokenized."
    )
    n: PositiveInt = Field(128, description="Most answers per request, all its prompts together.")
    stop_strings: PositiveInt = Field(4, description="Most stop strings per request.")
    stop_characters: PositiveInt = Field(64, description="Most characters of a stop string.")
    biased_tokens: PositiveInt = Field(
        1024, description="Most tokens of logit_bias and stop_token_ids, and texts of bad_words, per request."
    )
    form_characters: PositiveInt = Field(
        2**15, description="Most characters of a schema, regular expression, list of choices or grammar."
    )
    likeliest: PositiveInt = Field(
        20, description="Most likeliest tokens, and votes per expert, that are shown at each place."
    )
    concurrent: PositiveInt = Field(
        256, description="Most requests under way in a replica of the front; the next one gets status 429."
    )
    queue: PositiveInt = Field(
        256, description="Most answers that wait for a replica of a model; the next one gets status 429."
    )
    request_seconds: Seconds = Field(300.0, description="Seconds after which a request ends with an error.")
    header_bytes: PositiveInt = Field(2**15, description="Most bytes of a request's address and headers.")
    headers: PositiveInt = Field(100, description="Most headers of a request.")
    header_seconds: Seconds = Field(10.0, description="Seconds that a client may take to send its headers.")
    body_seconds: Seconds = Field(30.0, description="Seconds that a client may take to send its body.")
    read_seconds: Seconds = Field(
        60.0, description="Seconds that a client may leave an answer unread that fills all buffers."
    )
    connections: PositiveInt = Field(1024, description="Most open connections.")


class ServeSettings(Section):
    """An endpoint."""

    models: list[HostedSettings] = Field(min_length=1, description="What it hosts; the first is the default.")
    limits: Limits = Field(Limits(), description="What a request may ask for.")
    api_keys_file: str | None = Field(
        None,
        description="File with one API key per line, beside those in ENSEMW2S_API_KEYS. Default: no key is asked for.",
    )
    insecure: bool = Field(
        False, description="Serve anybody who can reach the address, without keys and under any host name."
    )
    hosts: list[str] = Field(
        [], description="Host names that requests may use where there are no keys, beside localhost and IP addresses."
    )
    cors_origins: list[str] = Field(
        [],
        description="Origins whose pages may use the endpoint from a browser, such as https://example.org; * is all.",
    )
    metrics_key: bool = Field(False, description="/metrics asks for a key, too.")
    log_prompts: bool = Field(False, description="Write prompts into the replicas' logs.")
    stream_interval: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Seconds between two pieces of a stream; each piece holds all tokens since the last."
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="How often another replica takes over an answer when one dies."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> ServeSettings:
        names = [model.name for model in self.models]
        wrong = [f"two models are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
        raise_all(wrong + [f"no model can be called {FRONT!r}: it is the name of what speaks HTTP"] * (FRONT in names))
        return self
