"""The times that raysim waits for a cluster, in seconds.

`*_TIMEOUT_S` ends a wait, `*_NOTICE_S` is the time until its first notice, `*_INTERVAL_S` is between two checks.
"""

from __future__ import annotations

# Connection and nodes
HEAD_REPLY_TIMEOUT_S = 10.0  # the head of a cluster accepts a connection, or answers a token check
NODE_PROBE_TIMEOUT_S = 20.0  # a node reports its versions and paths
BATCH_PROBE_TIMEOUT_S = 300.0  # `raysim doctor` measures one batch

# Placement
ALLOCATION_TIMEOUT_S = 2.0  # Ray allocates resources that are free
PLACEMENT_TIMEOUT_S = 120.0  # other runs release resources that the cluster has
PLACEMENT_NOTICE_S = 5.0
AUTOSCALING_TIMEOUT_S = 1800.0  # the cluster grows by the nodes that an actor or a trial needs
AUTOSCALING_NOTICE_S = 20.0

# Actors
ACTOR_START_TIMEOUT_S = 120.0  # the next client actor starts
NO_ACTOR_TIMEOUT_S = 120.0  # a lost actor restarts while no other is up, on a cluster that cannot grow
SERVER_REPLY_TIMEOUT_S = 120.0  # the server actor reports its progress
SERVER_START_TIMEOUT_S = 240.0  # the server actor answers for the first time: it imports torch and opens the plan
SHUTDOWN_TIMEOUT_S = 120.0  # an interrupted run writes its records
SILENT_ROUND_NOTICE_S = 60.0  # no site has answered in this round
KILL_TIMEOUT_S = 60.0  # fault injection starts a process on the node that it kills
POLL_INTERVAL_S = 0.5

# Status and stop
CONTROL_START_DELAY_S = (
    2.0  # the other actors of a run start first, and a run that fails at once needs no control actor
)
STATUS_INTERVAL_S = 2.0  # between two updates of the control actor
STATUS_REPLY_TIMEOUT_S = 10.0  # control actors answer `raysim status`
STOP_TIMEOUT_S = 120.0  # a run ends after a stop request

# Submitted jobs
JOB_REPLY_TIMEOUT_S = 120.0  # the cluster's dashboard answers again
JOB_START_INTERVAL_S = 2.0
JOB_FETCH_TIMEOUT_S = 600.0  # a job prints the results of a run
JOB_STATUS_INTERVAL_S = 30.0

# Intervals of client actors
MEMORY_GAUGE_INTERVAL_S = 2.0
MEMORY_PURGE_INTERVAL_S = 0.5
