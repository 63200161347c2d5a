"""A study as a Ray job, with the options of `ensemw2s study`; submitted again, it runs only the cells that are missing.

ray job submit --working-dir . -- python jobs/study.py tiny --set storage=/shared/runs
"""

import sys

from ensemw2s.cli.main import app

if __name__ == "__main__":
    app(["study", *sys.argv[1:]], prog_name="ensemw2s")
