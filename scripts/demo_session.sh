#!/usr/bin/env bash
# A session from training to tidying up, in 2 to 4 minutes on two cores: every command is shown with its real output.
#   scripts/demo_session.sh [SETTING...]     settings are added to every training, as in hardware.threads=1
# Fashion-MNIST comes from RUNNER_DATA (the folder that holds FashionMNIST/raw), else it is downloaded (30.9 MB).
# RUNNER is the command to use (scripts/run); DEMO_FOLDER a folder that keeps the runs (a temporary one, removed).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
runner=("$root/scripts/run")
[[ -z ${RUNNER:-} ]] || read -ra runner <<<"$RUNNER"
folder=${DEMO_FOLDER:-$(mktemp -d)}
[[ -n ${DEMO_FOLDER:-} ]] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"
cd "$folder"

show() { # show CODE ARGUMENTS...: a command and what it says; another exit code than CODE ends the session
  local code=0 expected=$1
  shift
  printf '\n$ runner %s\n' "$*"
  "${runner[@]}" "$@" >answer 2>&1 || code=$?
  cat answer
  [[ $code == "$expected" ]] || { echo "demo_session.sh: exit code $code, expected $expected" >&2 && exit 1; }
}
run_folder() { # of the run that was just shown: standard output's last line is its result.json
  local path
  path=$(dirname "$(tail -n 1 answer)")
  echo "runs/${path##*/runs/}"
}

settings=(model=resnet20 dataset=fashion_mnist dataset.train_size=3000 dataset.test_size=1000)
more=("$@")
settings+=(${more[@]+"${more[@]}"})
echo "Less than desk scale: 3,000 training and 1,000 test images of Fashion-MNIST, 10 epochs and 3 of fine-tuning."

show 0 method=supervised "${settings[@]}" recipe.epochs=10
trained=$(run_folder)
show 0 method=ekg "${settings[@]}" model.weights="$trained" recipe.epochs=3
pruned=$(run_folder)
show 0 evaluate "$pruned"
show 0 profile "$pruned"
show 0 compare "$(basename "$trained")" "$(basename "$pruned")"
show 1 method=supervised "${settings[@]}" recipe.optimizer.learning_rate=1e30
show 0 runs model=resnet20
show 0 clean --older-than 0
show 0 clean --older-than 0 --yes
