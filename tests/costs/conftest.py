"""Small files of a cluster and of prices, and a run of models that are config.json files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from ensemw2s.config import Config, parse_config
from ensemw2s.costs.hardware import Cluster, read_cluster

PRICES: dict[str, Any] = {
    "as_of": "a test",
    "assumptions": {
        "training_mfu": 0.5,
        "reading_mfu": 0.5,
        "decoding_bandwidth": 0.5,
        "seconds_a_layer": 0.001,
        "overhead_gib": 1,
        "startup_minutes": 6,
        "spot_share": 0.25,
        "characters_a_token": 4,
    },
    "processors": {
        "small": {"memory_gib": 16, "bf16_tflops": 100, "fp32_tflops": 20, "gb_per_second": 500},
        "large": {"memory_gib": 80, "bf16_tflops": 400, "fp32_tflops": 40, "gb_per_second": 2000},
        "old": {"memory_gib": 16, "fp32_tflops": 10, "gb_per_second": 300},
        "core": {"memory_gib": 8, "fp32_tflops": 0.2, "gb_per_second": 20},
    },
    "instances": {
        "x.head": {"cpus": 4, "memory_gib": 16, "on_demand": 0.2},
        "x.cpu": {"cpus": 4, "memory_gib": 8, "on_demand": 0.1, "processor": "core"},
        "x.one": {"gpu": "small", "gpus": 1, "cpus": 8, "memory_gib": 64, "on_demand": 1},
        "x.four": {"gpu": "small", "gpus": 4, "cpus": 32, "memory_gib": 256, "on_demand": 4, "spot": 1.5},
        "x.big": {"gpu": "large", "gpus": 8, "cpus": 64, "memory_gib": 1024, "on_demand": 20},
        "x.old": {"gpu": "old", "gpus": 1, "cpus": 8, "memory_gib": 64, "on_demand": 0.5},
    },
}


@pytest.fixture
def make_cluster(tmp_path: Path) -> Callable[..., Cluster]:
    """Writes a table and a cluster of kinds of node, `name=(instance type, most)`, each with a resource of its name."""

    def make(limit: int = 100, **kinds: tuple[str, int]) -> Cluster:
        (tmp_path / "prices.yaml").write_text(yaml.safe_dump(PRICES))
        types: dict[str, Any] = {"head": {"resources": {"CPU": 0}, "node_config": {"InstanceType": "x.head"}}}
        for name, (kind, most) in kinds.items():
            types[name] = {"resources": {name: 1}, "node_config": {"InstanceType": kind}, "max_workers": most}
        tree = {"cluster_name": "test", "max_workers": limit, "head_node_type": "head", "available_node_types": types}
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**tree, "idle_timeout_minutes": 3}))
        return read_cluster(tmp_path / "cluster.yaml")

    return make


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A run of two weak bases of 1.1 billion parameters and a strong one of 6.7 billion, on GPUs; other values by
    `section__key`."""
    for name, (hidden, inside, layers) in {"weak": (2048, 5632, 22), "strong": (4096, 11008, 32)}.items():
        LlamaConfig(
            hidden_size=hidden, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=32
        ).save_pretrained(tmp_path / name)
    rows = [{"prompt": "p" * 40, "answer": "a" * 80, "level": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> Config:
        tree: dict[str, Any] = {
            "name": "study",
            "storage": str(tmp_path / "runs"),
            "data": {
                "source": {
                    "kind": "files",
                    "paths": [str(tmp_path / "rows.jsonl")],
                    "columns": {"difficulty": "level"},
                },
                "split": {"difficulty_from": "column"},
                "sizes": {
                    "easy_train": 320,
                    "easy_validation": 10,
                    "id_test": 20,
                    "hard_unlabelled": 100,
                    "ood_test": 30,
                },
                "max_prompt_tokens": 128,
                "max_answer_tokens": 128,
            },
            "models": {
                "weak": [{"base": str(tmp_path / "weak"), "name": f"w{i}", "lora": {"rank": 8}} for i in range(2)],
                "strong": {"base": str(tmp_path / "strong"), "lora": {"rank": 8}},
            },
            "training": {"gpus_per_worker": 1, "lanes": 1},
            "expert": {"epochs": 1, "batch_size": 4},
            "boosting": {"rounds": 2},
            "labeling": {"gpus_per_actor": 1, "batch_size": 4, "max_new_tokens": 128, "max_actors": 1},
            "student": {"epochs": 1, "batch_size": 4, "micro_batch_size": 1},
            "evaluation": {"systems": ["bagging", "ensemw2s", "student_ensemw2s"]},
            "cluster": {},
        }
        for key, value in changes.items():
            node: Any = tree
            *parents, last = key.split("__")
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node[parent]
            node[last] = value
        return parse_config(tree)

    return make
