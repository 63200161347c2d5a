"""pydantic-ai: a text, and an answer of a schema. Prints JSON."""

import json
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Found(BaseModel):
    """What the answer has to be."""

    digit: Literal[1, 2, 3]
    sorted: bool


model = OpenAIChatModel("ensemble", provider=OpenAIProvider(base_url=sys.argv[1], api_key="none"))
plain = Agent(model).run_sync(sys.argv[2], model_settings={"temperature": 0, "max_tokens": 12})
agent = Agent(model, output_type=NativeOutput(Found))
found = agent.run_sync(sys.argv[2], model_settings={"temperature": 0, "max_tokens": 60})
print(json.dumps({"turns": [plain.output], **found.output.model_dump()}))
