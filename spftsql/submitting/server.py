"""Ray's dashboard and job server: reached with the cluster's token, asked for nodes and for what waits for room."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spftsql.cluster.session import use_token
from spftsql.errors import Fault, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_REACH_S = 5.0
_REQUEST_S = 30.0
_SETTLE_S, _POLL_S = 20.0, 0.5
Resources = Mapping[str, float]


def connect(address: str) -> JobSubmissionClient:
    """A client of the dashboard at `address`, with the cluster's token; raises `UserError` when it does not answer."""
    url = urlsplit(address)
    try:
        # Ray's client waits for a silent host for minutes; this does not.
        with closing(socket.create_connection((url.hostname, url.port or 8265), timeout=_REACH_S)):
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"Ray cannot be reached at {address}: {error}") from None
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # they tell of every upload and stream
    from requests.exceptions import RequestException

    use_token()
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"the cluster at {address} wants its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RequestException) as error:
        raise UserError(f"no Ray job server answers at {address}: {' '.join(str(error).split())[:200]}") from None


def dashboard_url(address: str) -> str:
    """The address as a URL; raises `UserError` for one of another kind."""
    address = address if "://" in address else f"http://{address}"
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"--address takes the cluster's dashboard as http://HOST:8265, not {address}")
    return address


def is_this_machine(address: str) -> bool:
    """Whether a dashboard URL is one of this machine's own."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def nodes(client: JobSubmissionClient) -> list[Resources]:
    """What each living node offers. Raises `Fault` when the dashboard does not tell."""
    found = _get(client, "/api/v0/nodes?limit=10000")["result"]["result"]
    return [node["resources_total"] for node in found if node["state"] == "ALIVE"]


def cluster_status(client: JobSubmissionClient) -> Mapping[str, Any]:
    """What Ray's autoscaler says of the cluster; empty where none has said anything yet."""
    status: Mapping[str, Any] | None = _get(client, "/api/cluster_status").get("clusterStatus")
    return status or {}


def settled_status(client: JobSubmissionClient) -> Mapping[str, Any]:
    """`cluster_status` with nodes in it, for which a cluster that has just started gets some seconds."""
    deadline = time.monotonic() + _SETTLE_S
    while not _node_types(status := cluster_status(client)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return status


def has_fixed_size(status: Mapping[str, Any]) -> bool:
    """Whether no autoscaler will ever add a node: each node is then reported as a type of its own."""
    types = _node_types(status)
    return bool(types) and all(kind.startswith("node_") for kind in types.values())


def _node_types(status: Mapping[str, Any]) -> Mapping[str, str]:
    """The type of every node, under the dashboard's names or Ray's own."""
    report = status.get("autoscalerReport") or status.get("autoscaler_report") or {}
    types: Mapping[str, str] | None = report.get("nodeTypeMapping") or report.get("node_type_mapping")
    return types or {}


def waiting(status: Mapping[str, Any]) -> list[tuple[Resources, int]]:
    """The demands that wait for room: what each takes, and how many of its kind there are."""
    report = status.get("loadMetricsReport") or {}
    demands = [(bundle, count) for bundle, count in report.get("resourceDemand") or []]
    for group, count in report.get("pgDemand") or []:
        demands += [(_plain(bundle), number * count) for bundle, number in group.get("bundles", [])]
    return [(_plain(bundle), count) for bundle, count in demands]


def offered(status: Mapping[str, Any]) -> list[Resources]:
    """What each node offers, under the names that `waiting` has: the dashboard rewrites `my_resource` in both."""
    types = (status.get("loadMetricsReport") or {}).get("nodeTypes") or []
    return [resources for resources, count in types for _ in range(count)]


def in_words(resources: Resources) -> str:
    """Resources for a line of text; those that Ray adds by itself are left out."""
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items() if not name.startswith("node:"))


def _plain(bundle: Resources) -> Resources:
    return {name: amount for name, amount in bundle.items() if not name.startswith(("node:", "bundle_"))}


def _get(client: JobSubmissionClient, path: str) -> Any:
    from requests.exceptions import RequestException

    try:
        # Ray's client has no public call for these, and knows the address, the token and the certificates.
        response = client._do_request("GET", path, timeout=_REQUEST_S)
    except RequestException as error:
        raise Fault(f"the dashboard broke off: {type(error).__name__}") from None
    if response.status_code != 200:
        raise Fault(f"the dashboard answered {path} with {response.status_code}")
    return response.json()["data"]


def beyond(each: Resources, count: int, offers: Sequence[Resources]) -> str:
    """What `count` bundles of the resources `each` lack on nodes that offer `offers`; empty when there is room.

    Bundles of one kind fill nodes independently of each other, so this is exact for them; it says nothing about what
    else runs there.
    """
    each = {name: amount for name, amount in each.items() if amount}
    if not each or not count:
        return ""
    for name, amount in each.items():
        most = max((node.get(name, 0.0) for node in offers), default=0.0)
        if amount > most + 1e-9:
            there = f"the largest node has {most:g}" if most else "no node has any"
            return f"{amount:g} {name}, and {there}"
    room = sum(min(int((node.get(name, 0.0) + 1e-9) // amount) for name, amount in each.items()) for node in offers)
    if room >= count:
        return ""
    return f"{count} times {in_words(each)}, and the nodes have room for {room}"
