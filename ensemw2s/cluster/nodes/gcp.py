"""Compute Engine instances for Ray's cluster launcher: `provider.module` of cluster/gcp.yaml."""

from __future__ import annotations

from typing import Any, cast

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

from ensemw2s.cluster.nodes.spot import ClusterFile, NodeConfig, SpotFirst, check

SPOT = ("provisioningModel", "instanceTerminationAction", "preemptible")


class SpotFirstGCP(SpotFirst, GCPNodeProvider):
    """Ray's provider for Google Cloud, with on-demand instances in place of spot ones that are not to be had."""

    @staticmethod
    def on_demand(node_config: NodeConfig) -> NodeConfig:
        scheduling = node_config.get("scheduling")
        if not isinstance(scheduling, dict):
            return node_config
        kept = {key: value for key, value in scheduling.items() if key not in SPOT}
        return {**node_config, "scheduling": kept}

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What `ray up` does first: project, service account, keys and network."""
        check(cast(ClusterFile, cluster_config))
        return GCPNodeProvider.bootstrap_config(cluster_config)
