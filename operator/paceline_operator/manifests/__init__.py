"""Builders of Kubernetes objects, one file a kind: complete plain dicts, the same input gives the same bytes."""
