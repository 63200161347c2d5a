"""LiteLLM: a completion, a chat, and a stream. Prints JSON."""

import json
import sys

import litellm

asked = {"api_base": sys.argv[1], "api_key": "none", "temperature": 0, "max_tokens": 12, "num_retries": 0}
messages = [{"role": "user", "content": sys.argv[2]}]
text = litellm.text_completion(model="text-completion-openai/ensemble", prompt=sys.argv[2], **asked)
chat = litellm.completion(model="openai/ensemble", messages=messages, **asked)
stream = litellm.completion(model="openai/ensemble", messages=messages, stream=True, **asked)
print(
    json.dumps(
        {
            "text": text.choices[0].text,
            "turns": [chat.choices[0].message.content],
            "stream": "".join(piece.choices[0].delta.content or "" for piece in stream),
        }
    )
)
