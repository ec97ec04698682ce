#!/bin/bash
# sbatch cluster/slurm.sh run -c examples/retina.yaml task.data.table=/shared/data/table.csv --out /shared/runs/retina
#
# One job of Slurm: a Ray on all of its nodes, the raysim command that stands after the script's name on the first of them, and
# the end of Ray when the command ends, however. Fill the lines marked FILL.
#SBATCH --job-name=raysim
#SBATCH --nodes=2                      # FILL: how many nodes
#SBATCH --gpus-per-node=4              # FILL: GPUs of each; without GPUs take this line out
#SBATCH --cpus-per-task=32             # FILL: CPUs of each
#SBATCH --time=24:00:00                # FILL: how long; raysim resume goes on with a run that was cut off
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120            # two minutes before the end: the run ends cleanly
set -euo pipefail
umask 077

source "$HOME/raysim-env/bin/activate" # FILL: where raysim is installed, for all nodes

# A token of this job's own: on the nodes others may have jobs too. It is in a file that only you read, never in a command.
token=$(mktemp "$HOME/.raysim-token.XXXXXX")
trap 'rm -f "$token"' EXIT
python -c 'import secrets; print(secrets.token_hex(32))' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
export RAYSIM_AUTOSCALER='{max_workers: 0, resources: {CPU: 1}}' # what was given to the job is all there is
export RAY_ADDRESS=auto RAYSIM_RUNS=${RAYSIM_RUNS:-$PWD/runs} RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${head%%$'\n'*}                  # the first; cut off by `head`, scontrol would end the script now and then
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs of yours on one node do not meet
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" \
  ${SLURM_GPUS_ON_NODE:+--num-gpus "$SLURM_GPUS_ON_NODE"} --dashboard-host 127.0.0.1 --dashboard-agent-listen-port 0 \
  --disable-usage-stats \
  -- raysim "$@" &
job=$!
trap 'raysim stop --all &' TERM
while true; do                         # a signal ends a wait, not the job
  code=0; wait "$job" || code=$?
  kill -0 "$job" 2>/dev/null || exit "$code"
done
