"""Lints the chart and renders it with each set of values that the folder values/ holds: NAME.yaml has what
Kubernetes itself knows, NAME.custom.yaml the rest, NAME.rules.yaml the alerts.
Usage: render.py FOLDER_TO_WRITE"""

import pathlib
import sys

import helm_python as helm
import yaml


def check_paths(deployment):
    """Every file that a flag names lies where something is mounted, and every mount has its volume."""
    pod = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod.get("initContainers", []) + pod["containers"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes, (mounts, volumes)
        for arg in container["args"]:
            path = arg.partition("=")[2]
            if arg.startswith("--") and path.startswith("/"):
                assert any(path == mount or path.startswith(mount + "/") for mount in mounts), (arg, mounts)


def check_tls(values, documents):
    """All who ask the daemon ask in the way that it answers."""
    kinds = {document["kind"]: document["spec"] for document in documents}
    container = kinds["Deployment"]["template"]["spec"]["containers"][0]
    has_tls = bool(values.get("tls"))
    schemes = {container[probe]["httpGet"].get("scheme") == "HTTPS"
               for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    schemes |= {endpoint.get("scheme") == "https" for endpoint in kinds.get("ServiceMonitor", {}).get("endpoints", [])}
    schemes |= {any(arg.startswith(flag) for arg in container["args"]) for flag in ("--tls-cert=", "--tls-key=")}
    assert schemes == {has_tls}, (has_tls, schemes)


here = pathlib.Path(__file__).parent
chart_path, target = str(here / "nemoserve"), pathlib.Path(sys.argv[1])
errors = [m for m in helm.lint(chart_path)["messages"] if m["severity"] > 1]
assert not errors, errors
with helm.Chart.load(chart_path) as chart:
    for values in sorted((here / "values").glob("*.yaml")):
        given = yaml.safe_load(values.read_text()) or {}
        if values.stem.startswith("refused-"):
            try:
                chart.render(given, name="demo", namespace="prod")
            except helm.HelmError:
                continue
            sys.exit(f"{values}: these values should have been refused")
        manifests = chart.render(given, name="demo", namespace="prod")
        documents = [
            document
            for name, text in sorted(manifests.items())
            if name.endswith(".yaml")
            for document in yaml.safe_load_all(text)
            if document
        ]
        for document in documents:
            if document["kind"] == "Deployment":
                check_paths(document)
        check_tls(given, documents)
        is_custom = lambda document: "." in document["apiVersion"].split("/")[0].removesuffix(".k8s.io")
        custom = [document for document in documents if is_custom(document)]
        known = [document for document in documents if not is_custom(document)]
        rules = [document["spec"] for document in custom if document["kind"] == "PrometheusRule"]
        for ending, content in ("yaml", known), ("custom.yaml", custom), ("rules.yaml", rules):
            if content:
                path = target / f"{values.stem}.{ending}"
                path.write_text(yaml.safe_dump_all(content, sort_keys=False))
