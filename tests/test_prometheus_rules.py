"""deploy/prometheus: each rule and alert is tested, each alert has its runbook; promtool agrees."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LIFETIME, ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
RULES = ("recording_rules.yml", "alerts.yml")
SEVERITIES = {"critical", "warning"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in read(PROMETHEUS / file)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return rules("alerts.yml")


def alert_tests() -> Iterator[dict[str, Any]]:
    for file in TESTS:
        for test in read(file)["tests"]:
            yield from test.get("alert_rule_test", ())


def anchors(markdown: str) -> set[str]:
    """As GitHub makes them of headings that are one word."""
    return {heading.lower() for heading in re.findall(r"(?m)^## (\w+)$", markdown)}


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    names = {alert["alert"] for alert in alerts()}
    firing = {test["alertname"] for test in alert_tests() if test["exp_alerts"]}
    quiet = {test["alertname"] for test in alert_tests() if not test["exp_alerts"]}
    assert firing == names
    assert quiet == names


def test_every_recorded_value_is_tested() -> None:
    recorded = {rule["record"] for rule in rules("recording_rules.yml")}
    cases = [
        c for file in TESTS for t in read(file)["tests"] for c in t.get("promql_expr_test", ())
    ]
    assert {name for name in recorded if not any(name in case["expr"] for case in cases)} == set()


def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_do() -> None:
    runbook = anchors((PROMETHEUS / "RUNBOOK.md").read_text(encoding="utf-8"))
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["labels"]["severity"] in SEVERITIES
        assert ROOT / page == PROMETHEUS / "RUNBOOK.md"
        assert anchor == alert["alert"].lower()
        assert anchor in runbook
    assert runbook == {alert["alert"].lower() for alert in alerts()}


def test_every_link_in_the_runbook_leads_to_one_of_its_sections() -> None:
    text = (PROMETHEUS / "RUNBOOK.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors(text)


def promtool(*arguments: str) -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=LIFETIME)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.prometheus
def test_promtool_finds_the_configuration_and_all_rules_valid() -> None:
    said = promtool("check", "config", "prometheus.yml")
    for file in RULES:
        assert f"SUCCESS: {len(rules(file))} rules found" in said


@pytest.mark.prometheus
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_and_alerts_do_what_promtools_tests_say(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(file))
