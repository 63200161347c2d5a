"""Commands that hand a model on: as plain weights to other tools, and to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ensemw2s.cli import options
from ensemw2s.cli.options import option
from ensemw2s.cli.outcome import before_work, outcome, say

DTypes = Literal["auto", "float32", "bfloat16", "float16"]


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", show_default=False, help="Folder of a run, or of a trained model.")
    ],
    output: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder to write: a new one.")],
    dtype: Annotated[
        DTypes, option("--dtype", "Type of the weights; auto: that of the base, or of the model.", show_default=True)
    ] = "auto",
    debug: options.Debug = False,
) -> None:
    """Write a student as plain weights that need neither ensemw2s nor peft.

    LoRA adapters are merged into their base; full weights are copied. The folder has safetensors, config, tokenizer and
    a model card. transformers and vLLM load it, and llama.cpp's convert_hf_to_gguf.py reads it. Of a run the student
    that learned from the ensemble is taken; name its folder for another one.

        ensemw2s export runs/quickstart student
        ensemw2s export runs/quickstart/students/student_easy_only easy-only --dtype bfloat16
    """
    with outcome(debug=debug):
        from ensemw2s.publishing.export import export as write

        with before_work():
            found = write(model, output, dtype)
        said = "adapters merged into their base" if found.merged else "full weights"
        say(f"{output}/  {found.size / 1e6:,.1f} MB of {found.dtype}: {said}, tokenizer and model card (README.md)")


def push(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", show_default=False, help="Folder of an exported model, of an ensemble, or of adapters."
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", show_default=False, help="Hub id: org/name.")],
    public: Annotated[bool, typer.Option("--public", help="Let everyone read a repository that is made here.")] = False,
    revision: Annotated[str | None, option("--revision", "Branch; made if it is missing. Default: main.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
    debug: options.Debug = False,
) -> None:
    """Upload a model or an ensemble to the Hugging Face hub, with a model card.

    The repository is made if it is missing, and is private unless you say --public. A folder without a README.md gets
    a card with the run's data, figures and base models. Read it before you publish. The token is that of `hf auth
    login`, or HF_TOKEN.

        ensemw2s push student my-org/my-student --dry-run
        ensemw2s push runs/quickstart/ensemble my-org/my-ensemble
    """
    with outcome(debug=debug):
        from ensemw2s.publishing import push as pushing

        with before_work():
            upload = pushing.prepare(model)
        if dry_run:
            for name in upload.files:
                say(f"{(upload.folder / name).stat().st_size / 1e6:>10,.2f} MB  {name}")
            if upload.card is not None:
                say(f"            README.md, to be written:\n\n{upload.card}")
            say(f"would upload {upload.size / 1e6:,.1f} MB to {repo}")
            return
        say(f"uploaded {upload.size / 1e6:,.1f} MB: {pushing.push(upload, repo, public=public, revision=revision)}")
