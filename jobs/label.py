"""Labelling as a Ray job, with the options of `ensemw2s label`; submitted again, it labels only what is missing.

ray job submit --working-dir . -- python jobs/label.py \
    --ensemble /shared/runs/quickstart/ensemble --input s3://bucket/prompts --output /shared/labels
"""

import sys

from ensemw2s.cli.main import app

if __name__ == "__main__":
    app(["label", *sys.argv[1:]], prog_name="ensemw2s")
