"""Lints the chart and renders it with each set of values that the folder values/ holds: NAME.yaml has what
Kubernetes itself knows, NAME.custom.yaml the rest, NAME.rules.yaml the alerts.
Usage: render.py FOLDER_TO_WRITE"""

import pathlib
import sys

import helm_python as helm
import yaml

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
        is_custom = lambda document: "." in document["apiVersion"].split("/")[0].removesuffix(".k8s.io")
        custom = [document for document in documents if is_custom(document)]
        known = [document for document in documents if not is_custom(document)]
        rules = [document["spec"] for document in custom if document["kind"] == "PrometheusRule"]
        for ending, content in ("yaml", known), ("custom.yaml", custom), ("rules.yaml", rules):
            if content:
                path = target / f"{values.stem}.{ending}"
                path.write_text(yaml.safe_dump_all(content, sort_keys=False))
