"""A cluster config is checked before a launch, and a refused spot instance becomes an on-demand one."""

import copy
from typing import Any

import pytest

from ensemw2s.cluster.nodes.spot import SpotFirst, check
from ensemw2s.errors import ConfigError

SPOT = {"type": "a", "market": "spot"}


class Shop:
    """Stands for one of Ray's providers: sells so many of each and remembers what it was asked for."""

    def __init__(self, spot: int, dear: int) -> None:
        self.stock = {"spot": spot, "dear": dear}
        self.sold: list[str] = []

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        market = node_config.pop("market", "dear")
        if self.stock[market] < count:
            raise RuntimeError(f"no {market}")
        self.stock[market] -= count
        self.sold += [market] * count
        return {f"node-{len(self.sold)}": tags}


class Provider(SpotFirst, Shop):
    @staticmethod
    def on_demand(node_config):
        return {key: value for key, value in node_config.items() if key != "market"}


def test_what_spot_has_not_is_bought_on_demand():
    provider, asked = Provider(spot=1, dear=5), copy.deepcopy(SPOT)
    made = provider.create_node(asked, {"name": "x"}, 3)
    assert provider.sold == ["spot", "dear", "dear"]
    assert made == {f"node-{i}": {"name": "x"} for i in (1, 2, 3)}
    assert asked == SPOT


def test_a_node_that_was_never_to_be_spot_is_asked_for_once():
    provider = Provider(spot=9, dear=0)
    with pytest.raises(RuntimeError, match="no dear"):
        provider.create_node({"type": "head"}, {}, 1)
    assert provider.stock["spot"] == 9


def test_where_there_is_neither_the_last_refusal_is_told():
    with pytest.raises(RuntimeError, match="no dear"):
        Provider(spot=0, dear=0).create_node(SPOT, {}, 1)


@pytest.fixture
def config(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    return {
        "provider": {"type": "external", "region": "here"},
        "docker": {"image": f"somewhere/it@sha256:{'0' * 64}"},
        "file_mounts": {"/there/auth_token": str(token)},
        "available_node_types": {"head": {"node_config": {"disks": [{"size": 1}]}}},
    }


def test_a_config_with_everything_in_it_passes(config):
    check(config)


def test_empty_values_are_named_all_at_once(config):
    config["provider"]["project"] = None
    config["available_node_types"]["head"]["node_config"]["disks"][0]["image"] = None
    with pytest.raises(ConfigError, match=r"empty.*: provider\.project, head\.node_config\.disks\.0\.image$"):
        check(config)


@pytest.mark.parametrize("image", ["it:latest", "it", f"it@sha256:{'0' * 63}", f"@sha256:{'0' * 64}", "it@sha256:…"])
def test_an_image_that_is_not_named_by_its_digest_is_refused(config, image):
    config["docker"]["image"] = image
    with pytest.raises(ConfigError, match=rf"docker\.image is {image}: name it by its digest.*docker inspect"):
        check(config)


def test_without_a_token_the_command_that_makes_one_is_named(config):
    config["file_mounts"]["/there/auth_token"] += "-not-there"
    with pytest.raises(
        ConfigError, match=r"auth_token-not-there, which does not exist\. For a token: `ray get-auth-token --generate`"
    ):
        check(config)
