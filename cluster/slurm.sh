#!/bin/bash
# sbatch cluster/slurm.sh run -c examples/retina.yaml task.data.table=/shared/data/table.csv --out /shared/runs/retina
#
# One Slurm job: it starts Ray on all of its nodes, runs the raysim command given after the script's name on the first node,
# and stops Ray when the command ends. Fill in the lines marked FILL.
#SBATCH --job-name=raysim
#SBATCH --nodes=2                      # FILL: number of nodes
#SBATCH --gpus-per-node=4              # FILL: GPUs per node; without GPUs remove this line
#SBATCH --cpus-per-task=32             # FILL: CPUs per node
#SBATCH --time=24:00:00                # FILL: time limit; raysim resume continues an interrupted run
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120            # two minutes before the limit, so that the run ends cleanly
set -euo pipefail
umask 077

source "$HOME/raysim-env/bin/activate" # FILL: the environment with raysim, visible on all nodes

# A token for this job, because others may have jobs on the same nodes. It is in a file that only you can read, never in a command.
token=$(mktemp "$HOME/.raysim-token.XXXXXX")
nodes=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES")
trap 'rm -f "$token"; srun "${nodes[@]}" rm -rf "$RAY_TMPDIR"' EXIT
python -c 'import secrets; print(secrets.token_hex(32))' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
# Ray opens its temporary folder to all users of a node, so the folder above it is yours alone: a new one on each node.
export RAY_TMPDIR=/tmp/raysim-${token##*.}
srun "${nodes[@]}" mkdir -m 700 "$RAY_TMPDIR"
export RAYSIM_AUTOSCALER='{max_workers: 0, resources: {CPU: 1}}' # the job cannot grow
export RAY_ADDRESS=auto RAYSIM_RUNS=${RAYSIM_RUNS:-$PWD/runs} RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${head%%$'\n'*}                  # the first node; with `| head`, a SIGPIPE of scontrol could end the script
port=$((20000 + SLURM_JOB_ID % 10000)) # different for two jobs on one node
srun "${nodes[@]}" --kill-on-bad-exit=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" \
  ${SLURM_GPUS_ON_NODE:+--num-gpus "$SLURM_GPUS_ON_NODE"} --dashboard-host 127.0.0.1 --dashboard-agent-listen-port 0 \
  --disable-usage-stats \
  -- raysim "$@" &
job=$!
trap 'raysim stop --all &' TERM
while true; do                         # a signal ends `wait`, not the job
  code=0; wait "$job" || code=$?
  kill -0 "$job" 2>/dev/null || exit "$code"
done
