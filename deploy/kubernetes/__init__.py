"""Kubernetes manifests, and the one of them that is made of what other deployments read too."""
