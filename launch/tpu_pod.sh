#!/usr/bin/env bash
# Trains on a TPU pod with Cloud TPU's queued resources. `tpu_pod.sh --help` explains it.
set -euo pipefail

# shellcheck source=launch/tpu_phases.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu_phases.sh"

resource="queued resource"
size_option=--accelerator-type
own_options="  --name NAME               name of the queued resource and of its node
  --accelerator-type TYPE   for example v5litepod-16, v5p-32 or v6e-16
  --runtime-version VERSION for example v2-alpha-tpuv5-lite, v2-alpha-tpuv5 or v2-alpha-tpuv6e
  --spot                    cheaper, and may be taken away at any time
  --zone ZONE, --project PROJECT
                            (default: those of \`gcloud config\`)"

tpu_state() { # ANSWER
  ask_if_there "$1" gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format="value(state.state)"
}

explain_state() {
  run_command gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format="yaml(state)"
}

request_tpu() {
  local tier=()
  if $spot; then tier=(--spot); fi
  say "asking for $accelerator_type as $name"
  request "queued resource $name" gcloud compute tpus queued-resources create "$name" \
    --node-id="$name" --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" \
    "${tier[@]}" "${place[@]}" || exit 1
}

delete_tpu() {
  run_command gcloud compute tpus queued-resources delete "$name" --force --quiet "${place[@]}"
}

find_workers() { :; } # gcloud knows them by their numbers

copy_to_workers() { # FILE
  run_command gcloud compute tpus tpu-vm scp "$1" "$name:$(basename "$1")" --worker=all "${place[@]}"
}

copy_from_worker_0() { # FOLDER
  run_command gcloud compute tpus tpu-vm scp --recurse "$name:$1" runs/ --worker=0 "${place[@]}"
}

ssh_workers() { # WORKERS COMMAND
  run_command gcloud compute tpus tpu-vm ssh "$name" --worker="$1" "${place[@]}" --command="$2"
}

require_accelerator() {
  accelerator=$accelerator_type
  case $phase in create | run) ;; *) return ;; esac
  [[ -n $accelerator_type ]] || die 2 "give --accelerator-type, for example v5litepod-16"
  [[ -n $runtime_version ]] || die 2 "give --runtime-version, for example v2-alpha-tpuv5-lite"
}

accelerator_type='' runtime_version=''
main "--accelerator-type --runtime-version" "$@"
