"""The HTTP header names that cross a border (DESIGN §4), in lower case as HTTP/1.1 parsers compare them.

Clients may send `SLO_CLASS`, `CLIENT_TTFT_MS` and `CLIENT_TPOT_MS` to the router, and who they are: `TENANT`, what a
gateway sets, `FAIRNESS_ID`, or an API key in `AUTHORIZATION`. Everything else here is set by the router for an engine,
which believes it only together with the service's token.
"""

SLO_CLASS = "x-slo-class"
CLIENT_TTFT_MS = "x-llm-d-slo-ttft-ms"
CLIENT_TPOT_MS = "x-llm-d-slo-tpot-ms"
TENANT = "x-tenant"
FAIRNESS_ID = "x-gateway-fairness-id"
AUTHORIZATION = "authorization"
TTFT_REMAINING_MS = "x-slo-ttft-remaining-ms"
TPOT_MS = "x-slo-tpot-ms"
MAX_STALL_MS = "x-slo-max-stall-ms"
TOKEN = "x-paceline-token"
PREFILLER = "x-prefiller-host-port"
SIMULATED = "x-paceline-simulated"
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

TOKEN_ENV = "PACELINE_TOKEN"

# What a client may not smuggle through the router to an engine.
ENGINE_ONLY = frozenset({TTFT_REMAINING_MS, TPOT_MS, MAX_STALL_MS, TOKEN, PREFILLER})
CLIENT_SLO = frozenset({SLO_CLASS, CLIENT_TTFT_MS, CLIENT_TPOT_MS})
