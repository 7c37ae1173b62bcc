"""How `paceline up` runs vLLM where there is no GPU: one replica a pool, bounded threads, a KV space that fits.

A CPU serves a small model for tests and demos, so the file's classes, topology and roles hold, its replicas and
parallelism do not. Invariant: the engines' threads together leave a core to router and HTTP servers where there are
that many, and the KV space of a model whose shape is known holds whole contexts. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline_planner.plan import Plan, PoolPlan

LEAST_KV_BYTES = 256 << 20
CONTEXTS = 4  # whole ones that the KV space holds
UNKNOWN_KV_BYTES = 1 << 30  # for a model whose tokens' size is not known
MOST_SEQUENCES = 32  # vLLM's own default sizes its buffers for a GPU


@dataclass(frozen=True, slots=True)
class CPU:
    """What each engine gets: cores to compute on, bytes of KV, and the PATH on which it finds `vllm`."""

    threads: int
    kv_bytes: int
    path: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Without --enforce-eager vLLM compiles for minutes."""
        return ("--enforce-eager", f"--max-num-seqs={MOST_SEQUENCES}", f"--kv-cache-memory-bytes={self.kv_bytes}")

    @property
    def env(self) -> dict[str, str]:
        """The worker runs within the engine's process: a second one would spin on a core. NIXL stays on loopback.

        The first sampled request (not a greedy one) would wait half a minute for the sampler to be compiled.
        """
        return {
            "PATH": self.path,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
            "UCX_TLS": "tcp",
            "UCX_NET_DEVICES": "lo",
        }


def make_cpu(plan: Plan, cores: int, context_tokens: int, kv_bytes_per_token: int | None, path: str) -> CPU:
    """The share of each engine of a plan on a machine with this many cores."""
    engines = max(sum(pool.replicas for pool in plan.pools), 1)
    kv_bytes = CONTEXTS * context_tokens * kv_bytes_per_token if kv_bytes_per_token else UNKNOWN_KV_BYTES
    return CPU(max((cores - 1) // engines, 1), max(kv_bytes, LEAST_KV_BYTES), path)


def shrink(plan: Plan) -> Plan:
    """One replica a pool, each without parallelism; no step-time table: those are of GPUs."""
    return replace(plan, pools=tuple(map(_shrink, plan.pools)))


def _shrink(pool: PoolPlan) -> PoolPlan:
    return replace(pool, replicas=min(pool.replicas, 1), tensor=1, pipeline=1, table="")
