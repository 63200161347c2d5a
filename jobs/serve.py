"""An endpoint as a Ray job, with the options of `ensemw2s serve`: the job ends when the endpoint is up, which stays.

Submitted again, it updates what is hosted and loses no request. `serve shutdown` ends the endpoint.

ray job submit --working-dir . -- python jobs/serve.py --ensemble /shared/runs/quickstart/ensemble
"""

import sys

from ensemw2s.cli.main import app

if __name__ == "__main__":
    app(["serve", "--detach", *sys.argv[1:]], prog_name="ensemw2s")
