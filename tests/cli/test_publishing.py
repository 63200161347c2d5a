"""The commands that hand a model on, as a user calls them."""

from pathlib import Path

from typer.testing import CliRunner, Result

from ensemw2s.cli.main import app
from ensemw2s.models import loading, tiny


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})


def test_a_model_is_exported_and_what_would_go_to_the_hub_is_listed(tmp_path: Path) -> None:
    tokenizer = tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9"] * 5, 40)
    loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer, tmp_path / "model")
    result = call("export", tmp_path / "model", tmp_path / "out", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "MB of bfloat16: full weights, tokenizer and model card (README.md)" in result.stdout
    listed = call("push", tmp_path / "out", "me/mine", "--dry-run").stdout
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(listed.split())
    assert "to me/mine" in listed
    refused = call("export", tmp_path / "model", tmp_path / "out")
    assert (refused.exit_code, "name a new folder" in refused.stderr) == (2, True)
