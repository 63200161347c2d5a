"""instructor: an answer of a schema. Prints JSON."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Found(BaseModel):
    """What the answer has to be."""

    digit: Literal[1, 2, 3]
    sorted: bool


client = instructor.from_openai(OpenAI(base_url=sys.argv[1], api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
found = client.chat.completions.create(
    model="ensemble", messages=[{"role": "user", "content": sys.argv[2]}], response_model=Found, max_retries=0,
    temperature=0, max_tokens=60,
)  # fmt: skip
print(json.dumps(found.model_dump()))
