"""lm-evaluation-harness: the command `lm_eval --model local-completions` on a task of options and one of answers.

Arguments: the endpoint, a folder with the tasks (`options.yaml`, `answers.yaml`), the tokenizer, and whether prompts go
as token ids. Prints the accuracies as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

url, tasks, tokenizer, ids = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    arguments = (
        f"base_url={url}/completions,model=ensemble,tokenizer={tokenizer},add_bos_token=True,tokenized_requests={ids},"
        "num_concurrent=1,max_retries=1,max_length=512,max_gen_toks=8"
    )
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "local-completions"]
    command += ["--model_args", arguments, "--include_path", tasks, "--tasks", "options,answers", "--batch_size", "4"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "OPENAI_API_KEY": "none"}
    environment = {**os.environ, **offline}
    done = subprocess.run(
        [*command, "--output_path", folder], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    [file] = Path(folder).rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
print(json.dumps({"options": results["options"]["acc,none"], "answers": results["answers"]["exact_match,none"]}))
