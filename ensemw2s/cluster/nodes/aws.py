"""EC2 instances for Ray's cluster launcher: `provider.module` of cluster/aws.yaml."""

from __future__ import annotations

from typing import Any, cast

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

from ensemw2s.cluster.nodes.spot import ClusterFile, NodeConfig, SpotFirst, check


class SpotFirstAWS(SpotFirst, AWSNodeProvider):
    """Ray's provider for AWS, with on-demand instances in place of spot ones that are not to be had."""

    @staticmethod
    def on_demand(node_config: NodeConfig) -> NodeConfig:
        return {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What `ray up` does first: keys, subnets and security groups."""
        check(cast(ClusterFile, cluster_config))
        return AWSNodeProvider.bootstrap_config(cluster_config)
