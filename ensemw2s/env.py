"""Every environment variable that this package reads or sets, and what it does. No other module touches them.

What the libraries below read for themselves (credentials of object storage, `HF_HOME`, `CUDA_VISIBLE_DEVICES`) is in
their own manuals.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: Its name.
        does: What it does, in a sentence for people.
    """

    name: str
    does: str

    def get(self) -> str | None:
        """Its value; None if it is not set or empty."""
        return os.environ.get(self.name) or None


@dataclass(frozen=True)
class Setting(Variable):
    """A variable that is set for a library, unless the user has set it.

    Attributes:
        name: Its name.
        does: Why it is set.
        value: What it is set to; None: it depends, and whoever sets it says so.
    """

    value: str | None = None

    def set_default(self, value: str | None = None) -> None:
        """Sets it, unless it is set; for this process and those that it starts."""
        chosen = self.value if value is None else value
        assert chosen is not None, f"{self.name} has no value of its own"
        os.environ.setdefault(self.name, chosen)


LOG = Variable("ENSEMW2S_LOG", "`json`: every line of progress is a JSON object. `text` (default): lines to read.")
SCRATCH = Variable(
    "ENSEMW2S_SCRATCH",
    "Folder for local copies of what lies in object storage. Default: the folder for temporary files. "
    "The same on all nodes.",
)
API_KEY = Variable("ENSEMW2S_API_KEY", "API key that `ensemw2s ask` sends to an endpoint.")
API_KEYS = Variable("ENSEMW2S_API_KEYS", "API keys that an endpoint accepts, separated by commas.")
FAULTS = Variable("ENSEMW2S_FAULTS", "Folder with a plan of faults. Only tests set it.")
RAY_ADDRESS = Variable("RAY_ADDRESS", "Cluster to join where `cluster.address` names none.")
RAY_JOB = Variable(
    "RAY_JOB_CONFIG_JSON_ENV_VAR", "Set by Ray in the driver of a job: relative paths are refused there."
)
RAY_TMPDIR = Variable(
    "RAY_TMPDIR", "Folder for the logs and sockets of a Ray that is started here. Default: a folder of its own."
)
RAY_AUTH_MODE = Variable("RAY_AUTH_MODE", "`token` or `disabled`: whether Ray asks for a token.")
RAY_AUTH_TOKEN_PATH = Variable("RAY_AUTH_TOKEN_PATH", "File with the token of a cluster. Default: `~/.ray/auth_token`.")
MLFLOW_URI = Variable("MLFLOW_TRACKING_URI", "MLflow's server where `tracking.uri` names none.")
WANDB_KEY = Variable("WANDB_API_KEY", "Key of Weights & Biases. Without it curves stay in the run's folder `wandb`.")
WANDB_MODE = Variable("WANDB_MODE", "`online`, `offline` or `disabled`. Default: `online` with a key, else `offline`.")
AZURE_ACCOUNT = Variable("AZURE_STORAGE_ACCOUNT_NAME", "Storage account of `az://` paths.")
AZURE_KEY = Variable("AZURE_STORAGE_ACCOUNT_KEY", "Its key. Default: the identity of the machine.")
HASH_SEED = Variable(
    "PYTHONHASHSEED", "Some data sets of reasoning_gym differ between processes unless it is set; a warning says so."
)
LOCAL_RANK = Setting("LOCAL_RANK", "Number of a training worker on its node: its GPU.", "0")
RANK = Setting("RANK", "Number of a training worker.", "0")
WORLD_SIZE = Setting("WORLD_SIZE", "Number of training workers.", "1")
MASTER_ADDR = Setting("MASTER_ADDR", "Address of the first training worker.", "127.0.0.1")
DS_ACCELERATOR = Setting("DS_ACCELERATOR", "Device of DeepSpeed: `cuda` if torch finds a GPU, else `cpu`.")
MLFLOW_FILES = Setting("MLFLOW_ALLOW_FILE_STORE", "MLflow may write into a folder, as `tracking` asks for.", "true")
WANDB_ERRORS = Setting(
    "WANDB_ERROR_REPORTING",
    "wandb sends no reports of its own errors: the network may be slow or closed.",
    "false",
)
RAY_RETRY_DELAY = Setting(
    "RAY_task_retry_delay_ms",
    "Milliseconds between two tries of a task: long enough to learn that a silent node is lost.",
    "3000",
)
RAY_AUTH_TOKEN = Setting(
    "RAY_AUTH_TOKEN", "Token of a Ray that is started here: a new one, which only its own processes know."
)
RAY_WATCHER = Setting(
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    "No process per training run that waits for notices which a lone machine never gets.",
    "0",
)
RAY_STARTS = Setting(
    "RAY_worker_maximum_startup_concurrency",
    "Processes that may start at the same time on a lone machine: a training lane is five small ones.",
    "16",
)
RAY_IDLE = Setting(
    "RAY_idle_worker_killing_time_threshold_ms",
    "Milliseconds after which an idle process ends on a lone machine: longer than the training between two rounds.",
    "600000",
)
RAY_LOG_LEVEL = Setting(
    "RAY_BACKEND_LOG_LEVEL",
    "Ray's core in the process of a command says only what ends it; not with `--debug`. Other processes log as usual.",
    "fatal",
)
RAY_NO_GPU = Setting(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "Ray leaves CUDA_VISIBLE_DEVICES alone where it gives no GPU.", "0"
)
RAY_STATE = Setting("RAY_TRAIN_ENABLE_STATE_TRACKING", "No actor that tracks the state of trainings.", "0")
RAY_METRICS = Setting("RAY_TRAIN_METRICS_ENABLED", "No metrics of Ray Train.", "0")
RAY_USAGE = Setting("RAY_USAGE_STATS_ENABLED", "Ray reports no usage to its makers.", "0")
OMP_THREADS = Setting("OMP_NUM_THREADS", "One thread in the process that worker processes are forked from.", "1")
OPENBLAS_THREADS = Setting("OPENBLAS_NUM_THREADS", "The same for OpenBLAS.", "1")
MKL_THREADS = Setting("MKL_NUM_THREADS", "The same for MKL.", "1")
ARROW_THREADS = Setting("JE_ARROW_MALLOC_CONF", "The same for pyarrow's allocator.", "background_thread:false")
RAY_TUNE_OUTPUT = Setting("RAY_AIR_NEW_OUTPUT", "Tune prints no table of its own beside that of the search.", "0")

VARIABLES = tuple(found for found in globals().values() if isinstance(found, Variable))
"""All of them: those that are read, then those that are set."""


@contextmanager
def kept(*variables: Variable) -> Iterator[None]:
    """Gives variables the values that they have, or have not, again when the block ends."""
    before = {variable.name: os.environ.get(variable.name) for variable in variables}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def copy(*settings: Setting) -> dict[str, str]:
    """The environment for a process that this one starts, with these settings whatever the user has set."""
    return os.environ | {setting.name: setting.value for setting in settings if setting.value is not None}


def replace(values: Mapping[str, str]) -> None:
    """Gives this process the environment of another one."""
    os.environ.clear()
    os.environ.update(values)


def table() -> str:
    """All variables as two tables in Markdown."""
    read = [f"| `{v.name}` | {v.does} |" for v in VARIABLES if not isinstance(v, Setting)]
    fixed = [
        f"| `{v.name}` | {f'`{v.value}`' if v.value else ''} | {v.does} |" for v in VARIABLES if isinstance(v, Setting)
    ]
    return "\n".join(
        [
            "## Variables that are read\n\n| Variable | What it does |\n|---|---|",
            *read,
            "\n## Variables that are set for libraries, unless you set them\n",
            "| Variable | Value | Why |\n|---|---|---|",
            *fixed,
            "",
        ]
    )
