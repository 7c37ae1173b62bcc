"""Events that the operator posts: what it does not touch, said once where `kubectl describe` shows it."""

from __future__ import annotations

from paceline_api.conditions import Reason
from paceline_api.schema import API_VERSION

from paceline_operator.kinds import SERVICE_KIND, Json
from paceline_operator.manifests.meta import Owner
from paceline_operator.revision import digest
from paceline_operator.settings import MANAGER
from paceline_operator.status import Taken


def name_taken(owner: Owner, taken: Taken, now: str) -> Json:
    """A Warning on the service; its name follows from what it says, so that a restart posts no second one."""
    said = [owner.uid, taken.kind, taken.name]
    involved = {
        "apiVersion": API_VERSION,
        "kind": SERVICE_KIND,
        "name": owner.name,
        "namespace": owner.namespace,
        "uid": owner.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{digest(said)}", "namespace": owner.namespace},
        "involvedObject": involved,
        "reason": str(Reason.NAME_TAKEN),
        "message": str(taken),
        "type": "Warning",
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
