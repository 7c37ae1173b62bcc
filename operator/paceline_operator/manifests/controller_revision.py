"""ControllerRevisions: the pod template of one revision, kept as it was rendered.

An upgrade of Paceline renders templates otherwise; the pods that run keep the one that is stored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline_router.endpoints import REVISION_LABEL

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import ROUTER_LABELS, Owner, Shard


def shard_revision(owner: Owner, shard: Shard, template: Json) -> Json:
    return owner.manifest(
        "ControllerRevision", shard.name(owner), shard.service_labels, data={"template": template}, revision=1
    )


def router_revision_name(owner: Owner, revision: str) -> str:
    return f"{owner.router}-{revision}"


def router_revision(owner: Owner, revision: str, template: Json) -> Json:
    labels = {**ROUTER_LABELS, REVISION_LABEL: revision}
    name = router_revision_name(owner, revision)
    return owner.manifest("ControllerRevision", name, labels, data={"template": template}, revision=1)


def stored_template(revision: Mapping[str, Any]) -> Json:
    template: Json = revision["data"]["template"]
    return template
