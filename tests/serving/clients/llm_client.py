"""The command `llm`: a prompt, and a second turn of the same conversation. Prints JSON."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    model = {"model_id": "ours", "model_name": "ensemble", "api_base": sys.argv[1]}
    Path(folder, "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
    program = str(Path(sys.executable).with_name("llm"))
    turns = []
    for options in (["-m", "ours", sys.argv[2]], ["-c", "again"]):
        command = [program, *options, "-o", "temperature", "0", "-o", "max_tokens", "12"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
        turns.append(done.stdout.removesuffix("\n"))
print(json.dumps({"turns": turns}))
