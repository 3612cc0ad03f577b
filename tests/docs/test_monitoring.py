"""The dashboard and the alert rules: whole, and as Grafana and Prometheus take them. Which metrics they name is looked at where
a server runs (tests/service/test_seeing.py)."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PRODUCTION = Path(__file__).parents[2] / "docs" / "production"
DASHBOARD: dict[str, Any] = json.loads((PRODUCTION / "grafana-dashboard.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((PRODUCTION / "alert-rules.yaml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def is_balanced(expression: str) -> bool:
    closing = {")": "(", "}": "{", "]": "["}
    opened: list[str] = []
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in closing.values():
            opened.append(character)
        elif character in closing and (not opened or opened.pop() != closing[character]):
            return False
    return not opened


def test_the_dashboard_is_whole() -> None:
    assert {"title", "uid", "panels", "templating", "schemaVersion", "time"} <= DASHBOARD.keys()
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(numbers)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(DASHBOARD["panels"]))) == variables == {"datasource", "tenant"}


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_something(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert is_balanced(target["expr"]), target["expr"]
        assert target["datasource"]["uid"] == "${datasource}"
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_a_rule(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"FuseGated[A-Za-z]+", rule["alert"])
    assert is_balanced(rule["expr"])
    assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "0s"))
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    # A label that the expression has summed away would be shown as nothing.
    told = set(re.findall(r"\$labels\.([a-z]+)", json.dumps(rule["annotations"])))
    kept = re.findall(r"by \(([a-z, ]+)\)", rule["expr"])
    for labels in kept:
        assert told <= set(labels.split(", "))


def test_rules_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)


def test_prometheus_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here")
    done = subprocess.run([promtool, "check", "rules", str(PRODUCTION / "alert-rules.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
