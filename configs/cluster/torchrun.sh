#!/bin/bash
# torchrun: several hosts without a scheduler, the same command on each of them.
#
#   HOSTS=2 PROCESSES=4 MEET=10.0.0.1:29500 bash configs/cluster/torchrun.sh fit -c ...
#
# HOSTS: number of hosts (default 1). PROCESSES: processes on each of them, one per GPU (default 1).
# MEET: address and free port of one of the hosts, where all of them meet. ADDRESS: the address by
# which the others reach this host (default: that of its name). WAIT: seconds to wait for the other
# hosts (default 600). COMMAND: default lightning-seg. A training that was cut off goes on with
# the same command on all hosts and --ckpt_path auto; all hosts must see the folder of the run.

verb=${1:?"give the words of the command, such as: fit -c configs/data/camvid.yaml"}
shift
HOSTS=${HOSTS:-1} PROCESSES=${PROCESSES:-1} MEET=${MEET:-127.0.0.1:29500}
ADDRESS=${ADDRESS:-$(hostname -i | cut -d ' ' -f 1)}

# Threads: processes x loader processes x threads must not exceed the cores of a host.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONUNBUFFERED=1
# The network of the collectives; without these, NCCL and gloo choose one themselves:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# Loader processes exchange batches through files of TMPDIR: it must be a disk of the host.
export TMPDIR=${TMPDIR:-/tmp}

host=${MEET%:*} port=${MEET##*:} meeting=join_timeout=${WAIT:-600}
if [ "$(getent ahosts "$host" | awk '{ print $1; exit }')" = "$ADDRESS" ] || [ "$HOSTS" -eq 1 ]; then
    meeting=$meeting,is_host=1   # torchrun compares names, which need not belong to the address
    if (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then
        echo "error: port $port of $host is in use, and MEET must name a free one" >&2
        exit 1
    fi
fi
torchrun=(
    torchrun --nnodes="$HOSTS" --nproc-per-node="$PROCESSES" --max-restarts=0
    --rdzv-backend=c10d --rdzv-endpoint="$MEET" --rdzv-id=lightning-seg
    --rdzv-conf="$meeting" --local-addr="$ADDRESS" --no-python
)
options=("--trainer.num_nodes=$HOSTS" "--trainer.devices=$PROCESSES")
exec "${torchrun[@]}" ${COMMAND:-lightning-seg} "$verb" "${options[@]}" "$@"
