#!/usr/bin/env bash
# Every check and measurement that needs a CUDA device, unattended and without a network.
#
#     benchmarks/gpu.sh [FOLDER]
#
# FOLDER gets gpu.log and the logs of the parts; the default is $OUT, or runs/gpu. A part that fails
# or takes too long does not stop the others, and the last lines say which ones failed. Wheels in the
# folder .whl are installed first, into a folder of their own, for machines without a package index.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"
export NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=offline
export PYTHONPATH="$PWD/site-packages:$PWD:$PWD/tests/support${PYTHONPATH:+:$PYTHONPATH}"
exec > >(tee "$out/gpu.log") 2>&1

if compgen -G ".whl/*.whl" > /dev/null; then
    $python -m pip install -q --no-index --no-deps --target site-packages .whl/*.whl
fi
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
echo "date $(date -u +%Y-%m-%dT%H:%MZ), commit $commit"
$python - <<'END' || exit 1
import sys
import torch, lightning
if not torch.cuda.is_available():
    sys.exit("this machine has no CUDA device")
devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(f"torch {torch.__version__}, lightning {lightning.__version__}, {', '.join(devices)}")
END

failed=()
part() { # NAME SECONDS WORDS...: run a part with a limit of time and a log of its own
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
    echo "== $name: exit code $code after $((SECONDS - begin)) s"
    tail -n 25 "$out/$name.log"
    [ "$code" -eq 0 ] || failed+=("$name")
}

test=("$python" -m pytest -q -p no:cacheprovider -o addopts="--strict-markers --import-mode=importlib")
demo=(-c configs/data/synthetic_scenes.yaml --data.num_workers 4 --data.batch_size 16
    --trainer.default_root_dir "$out/runs" --trainer.max_epochs -1 --trainer.max_steps 60)

# correctness: losses and metrics against the CPU, steps that never wait for the device, every
# method in 32-true, bf16-mixed and 16-mixed
part cuda_tests 600 "${test[@]}" tests/test_cuda.py
# speed of the losses, and of a step of two players against cross-entropy and the published loops
part losses 300 "$python" benchmarks/losses.py --device cuda
part two_players 600 "$python" benchmarks/two_players.py --device cuda
# the real command: DDP, synchronised batch norms, sharded weights, mixed precision
part fit_ddp 300 "$python" cli.py fit "${demo[@]}" -c configs/method/semi_adv.yaml \
    --data.labeled 1/4 -c configs/trainer/ddp.yaml
part fit_fsdp 300 "$python" cli.py fit "${demo[@]}" -c configs/method/cpg.yaml \
    -c configs/network/deeplab_v3.yaml -c configs/trainer/fsdp.yaml
part fit_compiled 300 "$python" cli.py fit "${demo[@]}" -c configs/method/lmp.yaml \
    -c configs/network/deeplab_v3.yaml -c configs/trainer/gpu.yaml --model.compile_network true

if [ "${#failed[@]}" -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all parts passed"
