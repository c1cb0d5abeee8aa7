"""The files in cluster/: each is held against the schema of what reads it, unknown fields refused."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
KUBERAY = CHECKOUT / "cluster" / "kuberay"
POLICIES = KUBERAY / "base" / "network-policy.yaml"
MANIFESTS = sorted(path for path in KUBERAY.glob("*/*.yaml") if path.name not in ("kustomization.yaml", "recipe.yaml"))
RAY = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob", "rayservice.yaml": "RayService"}
CLUSTERS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
KUBERNETES = "1.34"
# Maps with keys of one's own, or parts that the definitions do not look into.
FREE = {"metadata", "rayStartParams", "matchLabels", "requests", "limits", "labels", "selector"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_manifest(name: str) -> dict[str, Any]:
    (path,) = KUBERAY.glob(f"*/{name}")
    (document,) = documents(path)
    return document


def strict(schema: Any) -> Any:
    """The schema with every field that it does not name refused."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def definition(root: Path, kind: str) -> dict[str, Any]:
    path = root / "kuberay" / f"ray.io_{kind.lower()}s.yaml"
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    return schema


def complaints(root: Path, manifest: dict[str, Any]) -> list[str]:
    schema = definition(root, manifest["kind"])
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all mappings in a tree."""
    if isinstance(tree, dict):
        yield path
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*path, index))


@pytest.mark.parametrize("name", RAY)
def test_ray_manifests_are_what_kuberay_defines(data_root: Path, name: str) -> None:
    manifest = ray_manifest(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", RAY[name])
    assert complaints(data_root, manifest) == []
    assert set(manifest["metadata"]) <= {"name", "namespace", "labels", "annotations"}


@pytest.mark.parametrize("name", RAY)
def test_a_misspelt_key_anywhere_in_a_ray_manifest_is_refused(data_root: Path, name: str) -> None:
    manifest = ray_manifest(name)
    tried = 0
    for path in places(manifest):
        if FREE & set(path):
            continue
        wrong = copy.deepcopy(manifest)
        spot: Any = wrong
        for step in path:
            spot = spot[step]
        spot["imagge"] = "x"
        assert any("imagge" in complaint for complaint in complaints(data_root, wrong)), path
        tried += 1
    assert tried > 20


@pytest.mark.parametrize("path", [path for path in MANIFESTS if path.name not in RAY], ids=lambda path: path.stem)
def test_core_manifests_are_what_kubernetes_defines(path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for document in documents(path):
        validator.validate(document, KUBERNETES, strict=True)
        for spot in places(document):
            if FREE & set(spot):
                continue
            wrong = copy.deepcopy(document)
            inner: Any = wrong
            for step in spot:
                inner = inner[step]
            inner["imagge"] = "x"
            with pytest.raises(validator.ValidationError):
                validator.validate(wrong, KUBERNETES, strict=True)


def pods(tree: Any) -> Iterator[dict[str, Any]]:
    for path in places(tree):
        if path and path[-1] == "template":
            spot = tree
            for step in path:
                spot = spot[step]
            yield spot["spec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_containers_run_without_rights_and_within_bounds(path: Path) -> None:
    for document in documents(path):
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "spftsql"
        for pod in pods(document):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            volumes = {volume["name"] for volume in pod["volumes"]} if "volumes" in pod else {"data"}
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]
                assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("name", RAY)
def test_what_executes_sql_writes_nothing_but_scratch_and_speaks_to_few(name: str) -> None:
    cluster = ray_manifest(name)["spec"]
    for step in CLUSTERS[ray_manifest(name)["kind"]]:
        cluster = cluster[step]
    (group,) = (g for g in cluster["workerGroupSpecs"] if g["groupName"] == "verification")
    (container,) = group["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/shared/runs", "/scratch", "/tmp", "/home/ray/.cache", "/dev/shm"}
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents(POLICIES)}
    assert policies["verifiers"]["podSelector"]["matchLabels"] == {"ray.io/group": group["groupName"]}
    assert policies["verifiers"]["policyTypes"] == ["Egress"]
    assert all(rule["to"] for rule in policies["verifiers"]["egress"])  # a rule without a place allows every place


@pytest.mark.parametrize("name", RAY)
def test_clusters_have_tokens_the_pinned_ray_and_nodes_for_what_runs_there(name: str) -> None:
    manifest = ray_manifest(name)
    cluster = manifest["spec"]
    for step in CLUSTERS[manifest["kind"]]:
        cluster = cluster[step]
    pins = (CHECKOUT / "lock" / "gpu.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert manifest["kind"] == "RayJob" or "redisAddress" in cluster["gcsFaultToleranceOptions"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) >= {"generation", "verification"}
    for group, spec in groups.items():
        declared = json.loads(json.loads(spec["rayStartParams"].get("resources", '"{}"')))
        (container,) = spec["template"]["spec"]["containers"]
        assert declared.keys() <= {group}
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group != "verification")


def test_the_endpoint_is_a_configuration_that_serve_takes() -> None:
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    from cluster.applications import Arguments

    tree = yaml.safe_load(ray_manifest("rayservice.yaml")["spec"]["serveConfigV2"])
    config = ServeDeploySchema.model_validate(tree)
    assert {application.name: application.import_path for application in config.applications} == {
        "verifier": "cluster.applications:verifier",
        "endpoint": "cluster.applications:endpoint",
    }
    for application in config.applications:
        Arguments.model_validate(application.args)
    # Serve overlooks keys that it does not know.
    assert tree.keys() <= ServeDeploySchema.model_fields.keys()
    assert tree["http_options"].keys() <= HTTPOptionsSchema.model_fields.keys()
    assert all(application.keys() <= ServeApplicationSchema.model_fields.keys() for application in tree["applications"])
    with pytest.raises(ValueError, match="verifers"):
        Arguments.model_validate({"model": "m", "verifers": 2})


def test_serve_builds_the_applications_of_the_endpoint_from_a_file(tmp_path: Path) -> None:
    import sqlite3

    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    from cluster.applications import endpoint, verifier
    from spftsql.errors import UserError

    sqlite3.connect(tmp_path / "shop.sqlite").execute("CREATE TABLE t (a)").connection.close()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # the replica reads it, not the builder
    arguments = {
        "model": str(tmp_path / "model"),
        "databases": {"shop": str(tmp_path / "shop.sqlite")},
        "engine": "transformers",
        "verifiers": 3,
        "verifier_resources": {"verification": 1},
    }
    pool = build(verifier, arguments)._bound_deployment
    assert pool.num_replicas == 3 and pool.ray_actor_options["resources"] == {"verification": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPFTSQL_API_KEY", raising=False)
        with pytest.raises(UserError, match="SPFTSQL_API_KEY"):
            build(endpoint, arguments)
        patch.setenv("SPFTSQL_API_KEY", "secret-of-the-test")
        assert build(endpoint, arguments)._bound_deployment.name == "ingress"


@pytest.mark.parametrize("path", sorted((CHECKOUT / "cluster" / "vm").glob("*.yaml")), ids=lambda path: path.stem)
def test_vm_clusters_are_what_ray_up_takes(path: Path) -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    (tree,) = documents(path)
    jsonschema.validate(tree, schema)
    for section in ("auth", "docker", None):  # every provider has keys of its own
        wrong = copy.deepcopy(tree)
        (wrong.setdefault(section, {}) if section else wrong)["imagge"] = "x"
        with pytest.raises(jsonschema.ValidationError, match="imagge"):
            jsonschema.validate(wrong, schema)
    for command in [*tree["head_start_ray_commands"], *tree["worker_start_ray_commands"]]:
        assert "start" not in shlex.split(command) or "RAY_AUTH_MODE=token" in shlex.split(command)


@pytest.mark.parametrize("path", sorted(KUBERAY.glob("*/kustomization.yaml")), ids=lambda path: path.parent.name)
def test_kustomizations_name_what_is_there(path: Path) -> None:
    (tree,) = documents(path)
    assert set(tree) <= {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions"}
    files = [*tree["resources"], *(f for generator in tree.get("configMapGenerator", []) for f in generator["files"])]
    for name in files:
        place = path.parent / name
        assert place.is_file() or (place / "kustomization.yaml").is_file(), name
    listed = {(path.parent / name).resolve() for name in files}
    there = {file.resolve() for file in path.parent.glob("*.yaml") if file != path}
    assert there <= listed


def test_the_recipe_of_the_job_is_complete() -> None:
    from spftsql.recipes import resolve

    config = resolve(str(KUBERAY / "job" / "recipe.yaml"), ["run_dir=/shared/runs"])
    entrypoint = shlex.split(ray_manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert entrypoint[:3] == ["spftsql", "run", "/recipe/recipe.yaml"]
    assert config.verification.resources == {"verification": 1}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_are_pinned_by_the_locks_and_copy_what_is_there(target: str) -> None:
    parse = pytest.importorskip("dockerfile_parse").DockerfileParser
    path = CHECKOUT / "cluster" / "images" / f"Dockerfile.{target}"
    parser = parse(fileobj=path.open("rb"))
    ignore = (CHECKOUT / ".dockerignore").read_text().splitlines()
    known = {"FROM", "RUN", "COPY", "ARG", "WORKDIR", "USER", "ENV", "CMD", "COMMENT"}
    steps = [(step["instruction"], step["value"]) for step in parser.structure]
    assert {name for name, _ in steps} <= known
    (base,) = (value for name, value in steps if name == "FROM")
    assert base.startswith("python:3.11.") and "latest" not in base
    copied = [source for name, value in steps if name == "COPY" for source in value.split()[:-1]]
    assert {"spftsql", "jobs", "serve", "cluster", "lock"} <= set(copied)
    for source in copied:
        assert (CHECKOUT / source).exists() and f"!{source.split('/')[0]}" in ignore, source
    installs = [value for name, value in steps if name == "RUN" and "pip install" in value]
    assert any(f"-r lock/{target}.txt" in value for value in installs)
    assert all(command.count("--no-deps") == command.count("pip install") for command in installs)
    assert [value for name, value in steps if name == "USER"] == ["1000:1000"]
