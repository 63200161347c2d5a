"""Evaluation as a Ray job, with the options of `ensemw2s evaluate`; it leaves nothing but the file of --json.

ray job submit --working-dir . -- python jobs/evaluate.py \
    --model /shared/runs/quickstart/ensemble --input /shared/test.jsonl --json /shared/figures.json
"""

import sys

from ensemw2s.cli.main import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="ensemw2s")
