"""The service's own token (DESIGN §4): a Secret that is created once and never read."""

from __future__ import annotations

from paceline_api.headers import TOKEN_ENV

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import Owner

TOKEN_KEY = "token"


def token_secret(owner: Owner, token: str) -> Json:
    """Owned like every child, though it is none of KINDS: the operator may create it and nothing else."""
    manifest = owner.manifest("ServiceAccount", owner.token_secret, {}, stringData={TOKEN_KEY: token}, type="Opaque")
    return manifest | {"apiVersion": "v1", "kind": "Secret"}


def token_env(owner: Owner) -> Json:
    reference = {"name": owner.token_secret, "key": TOKEN_KEY}
    return {"name": TOKEN_ENV, "valueFrom": {"secretKeyRef": reference}}
