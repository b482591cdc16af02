"""What the dashboard asks Prometheus for. Usage:
check.py rules                     prints a file of rules with every query, for promtool
check.py metrics < /metrics        fails if a query names a metric that is not served
check.py ask http://PROMETHEUS     asks all of it, and names the panels that show nothing"""

import json
import pathlib
import re
import sys
import urllib.parse
import urllib.request

BOARD = json.loads((pathlib.Path(__file__).parent / "dashboard.json").read_text())
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "1m"}


def queries():
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            assert "$" not in text, f"{panel['title']}: a variable that nobody sets: {text}"
            yield panel["title"], text


def names():
    return {name for _, text in queries() for name in re.findall(r"\bnemoserve_\w+", text)}


def main():
    if sys.argv[1] == "rules":
        rules = [{"record": f"q{i}", "expr": text} for i, (_, text) in enumerate(queries())]
        json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
    elif sys.argv[1] == "metrics":
        served = {re.split(r"[ {]", line)[0] for line in sys.stdin if not line.startswith("#")}
        missing = names() - served
        assert not missing, f"the dashboard names what is not served: {sorted(missing)}"
        print(len(names()), "metrics")
    else:
        empty, num = [], 0
        for title, text in queries():
            url = f"{sys.argv[2]}/api/v1/query?" + urllib.parse.urlencode({"query": text})
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
            assert answer["status"] == "success", (title, answer)
            values = [sample["value"][1] for sample in answer["data"]["result"]]
            num += 1
            if not any(value != "NaN" for value in values):
                empty.append(title)
        print(f"{num} queries; nothing to show yet: {', '.join(dict.fromkeys(empty)) or 'none'}")


main()
