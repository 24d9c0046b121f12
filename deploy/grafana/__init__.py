"""Grafana's dashboards, and what makes them: `python -m deploy.grafana` writes dashboards/."""
