"""The openai client for Python: models, a completion, a stream, and a chat of two turns. Prints JSON."""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
asked = {"model": "ensemble", "temperature": 0, "max_tokens": 12}
whole = client.completions.create(prompt=sys.argv[2], **asked).choices[0].text
chunks = client.completions.create(prompt=sys.argv[2], stream=True, **asked)
messages = [{"role": "developer", "content": "sort"}, {"role": "user", "content": sys.argv[2]}]
first = client.chat.completions.create(messages=messages, **asked).choices[0].message
second = client.chat.completions.create(messages=[*messages, first, {"role": "user", "content": "again"}], **asked)
print(
    json.dumps(
        {
            "models": [card.id for card in client.models.list()],
            "text": whole,
            "stream": "".join(chunk.choices[0].text for chunk in chunks),
            "turns": [first.content, second.choices[0].message.content],
        }
    )
)
