"""The flags of `python -m paceline_engine.sim`, and the replica that they describe.

Everything that can be wrong is found here, before a port is opened, and becomes one `UsageError` that says what to do.
Truth is `--table`, with noise; `--prior-table` and `--prior-scale` change only what the policy believes (`setup`).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from ipaddress import ip_network
from random import Random
from typing import NoReturn

from paceline_api.catalog import find_model
from paceline_api.slo import STALL_PER_TPOT

from paceline_engine.policies import POLICIES
from paceline_engine.policies.step import Limits
from paceline_engine.request import Objective
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.replica import Replica
from paceline_engine.sim.setup import ReplicaSpec, build, scaled
from paceline_engine.step_time import StepTable
from paceline_engine.tables import TableMissing, load_table

ROLES = ("prefill", "decode", "mixed")


class UsageError(Exception):
    """The command cannot be run as given; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Options:
    """The checked flags; durations are model seconds. `prior` is the table that `prior_scale` is a factor on."""

    model: str
    served_name: str
    role: str
    ports: tuple[int, ...]
    host: str
    advertise_host: str
    time_scale: float
    seed: int
    replica: ReplicaSpec
    prior: StepTable
    prior_scale: float
    max_model_len: int
    kv_timeout_s: float
    kv_recompute: bool
    kv_hosts: frozenset[str]
    drain_timeout_s: float
    drain_notice_s: float
    startup_s: float
    objective: Objective
    service: str
    namespace: str
    pool: str
    revision: str
    announce: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parser() -> argparse.ArgumentParser:
    """A parser that raises UsageError."""
    p = _Parser(
        prog="python -m paceline_engine.sim", description="Simulated vLLM engines: real HTTP, modelled step times."
    )
    add = p.add_argument
    add("--model", required=True, help="name or URI of a model that has a step-time table")
    add("--served-name", default="", help="the `model` of requests (default: --model)")
    add("--table", required=True, help="step-time table of the machine, such as a100-sxm-80gb")
    add("--tensor", type=int, default=1, help="GPUs of one replica (tensor parallel)")
    add("--role", choices=ROLES, default="mixed")
    add("--policy", choices=sorted(POLICIES), default="stall-free")
    add("--replicas", type=int, default=1, help="engines in this process, each with its own port")
    add("--ports", default="0", help="comma-separated, one a replica; 0: chosen by the kernel")
    add("--host", default="127.0.0.1")
    add("--advertise-host", default="", help="where other engines reach this one (default: --host)")
    add("--max-model-len", type=int, default=0, help="0: the model's own context, at most the KV capacity")
    add("--time-scale", type=float, default=1.0, help="model seconds per wall second")
    add("--seed", type=int, default=0)
    add("--token-budget", type=int, default=0, help="0: the policy's own")
    add("--max-requests", type=int, default=256)
    add("--max-batched-tokens", type=int, default=8192)
    add("--block-size", type=int, default=16)
    add("--kv-blocks", type=int, default=0, help="0: from the table")
    add("--prior-table", default="", help="table that the policy believes in (default: --table)")
    add("--prior-scale", type=float, default=1.0, help="factor on that table")
    add("--tile-tokens", type=int, default=128)
    add("--noise", type=float, default=0.02, help="standard deviation of a step's time, as a share")
    add("--stalls", type=float, default=0.0002, help="probability of a 50 ms stall in a step")
    add("--kv-constant-ms", type=float, default=2.0, help="KV hand-over: constant")
    add("--kv-bandwidth-gbytes", type=float, default=25.0, help="KV hand-over: GB/s")
    add("--kv-timeout-ms", type=float, default=5000.0)
    add("--kv-on-failure", choices=("recompute", "fail"), default="recompute")
    add(
        "--kv-hosts",
        default="",
        help="hosts and networks that KV may come from besides loopback, comma-separated",
    )
    add("--lease-s", type=float, default=30.0, help="how long KV of a prefill leg is kept")
    add("--drain-timeout-s", type=float, default=300.0)
    add("--drain-notice-s", type=float, default=0.0, help="serve this long after /readyz turned to 503")
    add("--startup-s", type=float, default=0.0, help="pretend to load for this long")
    add("--default-class", default="default")
    add("--default-ttft-ms", type=float, default=1000.0)
    add("--default-tpot-ms", type=float, default=100.0)
    add("--default-max-stall-ms", type=float, default=0.0, help="0: three times --default-tpot-ms")
    add("--service", default="")
    add("--namespace", default="")
    add("--pool", default="")
    add("--revision", default="")
    add("--announce", default="", help="file to write {replica: URL} to when all listen")
    return p


def check(args: argparse.Namespace, own: StepTable | None = None) -> Options:
    """UsageError for the first thing that cannot work. `own`: the machine's table, which then is in no file."""
    _check_ranges(args)
    try:
        table = own or load_table(args.table, args.model, args.tensor)
        prior = load_table(args.prior_table, args.model, args.tensor) if args.prior_table else table
    except TableMissing as e:
        raise UsageError(str(e)) from e
    kv_blocks = args.kv_blocks or table.kv_tokens // args.block_size
    kv_tokens = kv_blocks * args.block_size
    shape = find_model(args.model)
    longest = shape.max_context_tokens if shape else kv_tokens
    max_model_len = args.max_model_len or min(longest, kv_tokens)
    if max_model_len > kv_tokens:
        raise UsageError(
            f"--max-model-len {max_model_len} is larger than the {kv_tokens} tokens that the KV cache holds; "
            f"lower it to {kv_tokens}, or raise --kv-blocks or --tensor"
        )
    if max_model_len > longest:
        raise UsageError(f"--max-model-len {max_model_len} exceeds the {longest} tokens of {args.model}; lower it")
    advertise_host = args.advertise_host or args.host
    for network in (entry for entry in args.kv_hosts.split(",") if "/" in entry):
        try:
            ip_network(network, strict=False)
        except ValueError as e:
            raise UsageError(f"--kv-hosts: {e}; write networks like 10.0.0.0/8") from e
    kv_hosts = {"127.0.0.1", "localhost", "::1", advertise_host, *filter(None, args.kv_hosts.split(","))}
    machine = MachineSpec(
        table,
        tile_tokens=args.tile_tokens,
        noise_ratio=args.noise,
        stall_probability=args.stalls,
        kv_constant_s=args.kv_constant_ms / 1e3,
        kv_bytes_per_s=args.kv_bandwidth_gbytes * 1e9,
    )
    replica = ReplicaSpec(
        machine,
        policy=args.policy,
        prior=prior if args.prior_scale == 1 else scaled(prior, args.prior_scale),
        limits=Limits(args.max_requests, args.max_batched_tokens, args.tile_tokens),
        token_budget=args.token_budget,
        block_size=args.block_size,
        kv_blocks=kv_blocks,
        lease_s=args.lease_s,
    )
    tpot_s = args.default_tpot_ms / 1e3
    stall_s = args.default_max_stall_ms / 1e3 or STALL_PER_TPOT * tpot_s
    return Options(
        model=args.model,
        served_name=args.served_name or args.model,
        role=args.role,
        ports=_ports(args.ports, args.replicas),
        host=args.host,
        advertise_host=advertise_host,
        time_scale=args.time_scale,
        seed=args.seed,
        replica=replica,
        prior=prior,
        prior_scale=args.prior_scale,
        max_model_len=max_model_len,
        kv_timeout_s=args.kv_timeout_ms / 1e3,
        kv_recompute=args.kv_on_failure == "recompute",
        kv_hosts=frozenset(kv_hosts),
        drain_timeout_s=args.drain_timeout_s,
        drain_notice_s=args.drain_notice_s,
        startup_s=args.startup_s,
        objective=Objective(args.default_class, args.default_ttft_ms / 1e3, tpot_s, stall_s),
        service=args.service,
        namespace=args.namespace,
        pool=args.pool or args.role,
        revision=args.revision,
        announce=args.announce,
    )


_AT_LEAST_ONE = ("tensor", "replicas", "max_requests", "max_batched_tokens", "block_size", "tile_tokens")
_NOT_NEGATIVE = ("max_model_len", "token_budget", "kv_blocks", "noise", "stalls", "kv_constant_ms", "drain_timeout_s")
_POSITIVE = ("prior_scale", "kv_bandwidth_gbytes", "kv_timeout_ms", "lease_s", "default_ttft_ms", "default_tpot_ms")


def _check_ranges(args: argparse.Namespace) -> None:
    def need(names: tuple[str, ...], holds: str, test: object) -> None:
        assert callable(test)
        for name in names:
            value = getattr(args, name)
            if not (math.isfinite(value) and test(value)):
                raise UsageError(f"--{name.replace('_', '-')} must be {holds}, got {value}")

    need(_AT_LEAST_ONE, "at least 1", lambda v: v >= 1)
    need((*_NOT_NEGATIVE, "drain_notice_s", "startup_s", "default_max_stall_ms"), "0 or more", lambda v: v >= 0)
    need(_POSITIVE, "more than 0", lambda v: v > 0)
    need(("stalls",), "a probability", lambda v: v <= 1)
    need(("time_scale",), "more than 0 and at most 1000", lambda v: 0 < v <= 1000)


def _ports(text: str, replicas: int) -> tuple[int, ...]:
    try:
        ports = tuple(int(port) for port in text.split(","))
    except ValueError as e:
        raise UsageError(f"--ports must be numbers with commas between them, got {text!r}") from e
    if ports == (0,):
        return (0,) * replicas
    if len(ports) != replicas:
        raise UsageError(f"--ports names {len(ports)} ports for {replicas} replicas; give one each, or 0")
    if not all(0 <= port <= 65535 for port in ports):
        raise UsageError(f"--ports must be from 0 to 65535, got {text}")
    return ports


def make_replica(options: Options, index: int) -> Replica:
    """The `index`th replica: its own machine, whose noise follows from seed and index, and its own fit."""
    return build(options.replica, Random(options.seed * 1_000_003 + index))
