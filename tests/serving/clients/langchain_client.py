"""LangChain: 20 prompts in one request, a chat of two turns, a stream, and an answer of a schema. Prints JSON."""

import json
import sys
from typing import Literal

from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Found(BaseModel):
    """What the answer has to be."""

    digit: Literal[1, 2, 3]


options = {"base_url": sys.argv[1], "api_key": "none", "model": "ensemble", "temperature": 0, "max_retries": 0}
many = OpenAI(**options, max_tokens=12).generate([sys.argv[2]] * 20)
chat = ChatOpenAI(**options, max_tokens=12)
messages = [("system", "sort"), ("human", sys.argv[2])]
first = chat.invoke(messages)
second = chat.invoke([*messages, first, ("human", "again")])
form = ChatOpenAI(**options, max_tokens=60).with_structured_output(Found, method="json_schema")
print(
    json.dumps(
        {
            "count": len(many.generations),
            "text": many.generations[-1][0].text,
            "turns": [first.content, second.content],
            "stream": "".join(piece.content for piece in chat.stream(messages)),
            "digit": form.invoke(messages).digit,
        }
    )
)
