"""The informer: what it holds after each event, and whom it wakes."""

from __future__ import annotations

from operator_cluster import NOW
from paceline_operator.kinds import Json
from paceline_operator.store import WATCHED, Id, Store
from paceline_router.endpoints import SERVICE_LABEL
from paceline_router.kube import Changed, Listed

CHAT = ("llm", "chat")


def make_service(name: str = "chat") -> Json:
    return {"kind": "LLMService", "metadata": {"name": name, "namespace": "llm"}}


def make_child(name: str, service: str = "chat") -> Json:
    metadata = {"name": name, "namespace": "llm", "labels": {SERVICE_LABEL: service}, "managedFields": [NOW]}
    return {"kind": "Deployment", "metadata": metadata}


def make_store() -> tuple[Store, list[Id]]:
    woken: list[Id] = []
    return Store(woken.append), woken


def test_it_is_synced_once_every_kind_was_listed() -> None:
    store, _ = make_store()
    for kind in WATCHED:
        assert not store.synced.is_set()
        store.tell(kind, Listed((), "1"))
    assert store.synced.is_set()


def test_children_are_found_by_their_label_and_wake_their_service() -> None:
    store, woken = make_store()
    store.tell("LLMService", Listed((make_service(),), "1"))
    store.tell("Deployment", Changed("ADDED", make_child("chat-mixed")))
    store.tell("Deployment", Changed("ADDED", make_child("other-mixed", "other")))
    assert [c["metadata"]["name"] for c in store.children(CHAT)] == ["chat-mixed"]
    assert "managedFields" not in store.children(CHAT)[0]
    assert store.ids() == [CHAT]
    assert woken == [CHAT, CHAT, ("llm", "other")]


def test_what_went_while_a_watch_was_broken_is_gone_after_the_next_list() -> None:
    store, woken = make_store()
    store.tell("LLMService", Listed((make_service(),), "1"))
    store.tell("Deployment", Listed((make_child("a"), make_child("b")), "1"))
    woken.clear()
    store.tell("Deployment", Listed((make_child("b"),), "9"))
    assert [c["metadata"]["name"] for c in store.children(CHAT)] == ["b"]
    assert woken == [CHAT]


def test_a_child_that_is_given_another_services_label_is_missed_by_its_own() -> None:
    store, woken = make_store()
    store.tell("Deployment", Listed((make_child("chat-mixed"),), "1"))
    woken.clear()
    store.tell("Deployment", Changed("MODIFIED", make_child("chat-mixed", "other")))
    assert store.children(CHAT) == []
    assert [c["metadata"]["name"] for c in store.children(("llm", "other"))] == ["chat-mixed"]
    assert woken == [CHAT, ("llm", "other")]
    store.tell("Deployment", Changed("DELETED", make_child("chat-mixed", "other")))
    assert store.children(("llm", "other")) == []


def test_a_deleted_service_is_forgotten() -> None:
    store, woken = make_store()
    store.tell("LLMService", Changed("ADDED", make_service()))
    store.tell("LLMService", Changed("DELETED", make_service()))
    assert store.service(CHAT) is None
    assert store.ids() == []
    assert woken == [CHAT, CHAT]
