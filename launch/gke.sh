#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster with gke_jobset.yaml. `gke.sh --help` explains it.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/gke.sh PHASE --name NAME [option ...] [-- CONFIG [option of jaxcls train ...]]

  show      print the filled-in gke_jobset.yaml
  apply     start the training; if it is running already, change nothing
  logs      show the log of worker 0, over restarts, until the training ends
  run       apply and logs; the exit status is that of the training
  status    show the state of the JobSet and its pods
  delete    delete the JobSet and its pods

  --name NAME               name of the JobSet
  --image IMAGE             built with launch/Dockerfile and pushed where the cluster can read it
  --accelerator TYPE        label of the nodes: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
                            (Ironwood), ...
  --topology TOPOLOGY       label of the nodes: 4x4 (v5e, v6e), 2x2x4 (v4, v5p, tpu7x), ...
  --chips-per-host N        chips of one node (default: 4)
  --spot                    nodes that may be taken away at any time
  --service-account NAME    of Kubernetes, with access to the buckets (default: default)
  --data-dir PATH           folder of the prepared data sets, such as gs://BUCKET/tfds
  --max-restarts N          restarts after a crash; those after a disruption or a stop do not count
                            (default: 3)
  --namespace NAMESPACE     (default: that of kubectl's context)
  --dry-run                 print the commands, run nothing

JobSet 0.8 or newer must be installed in the cluster. Exit status: 0 done; 2 your mistake (or the
training's exit status 2); otherwise 1. The state is checked every JAXCLS_POLL_SECONDS (10).
END
}

# shellcheck source=launch/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

POLL_SECONDS=${JAXCLS_POLL_SECONDS:-10}

run_kubectl() {
  if $dry_run; then
    quoted kubectl "${kubectl_options[@]}" "$@" >&3
  else
    kubectl "${kubectl_options[@]}" "$@"
  fi
}

# The words as a list of YAML (and JSON) strings.
yaml_list() {
  local word list='' code
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    while [[ $word =~ [[:cntrl:]] ]]; do
      printf -v code '\\u%04x' "'${BASH_REMATCH[0]}"
      word=${word//"${BASH_REMATCH[0]}"/"$code"}
    done
    list+=", \"$word\""
  done
  echo "[${list:2}]"
}

show() {
  local text index word
  text=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
  $spot || text=$(grep -v '# only with --spot$' <<<"$text")
  local pairs=(
    NAME "$name" IMAGE "$image" ACCELERATOR "$accelerator" TOPOLOGY "$topology"
    CHIPS_PER_HOST "$chips_per_host" HOSTS "$hosts"
    MAX_RESTARTS "$max_restarts" SERVICE_ACCOUNT "$service_account"
    ARGUMENTS "$(yaml_list train "${training[@]}")"
  )
  for ((index = 0; index < ${#pairs[@]}; index += 2)); do
    word="\${${pairs[index]}}"
    text=${text//"$word"/"${pairs[index + 1]}"}
  done
  echo "$text"
}

apply() {
  local manifest
  manifest=$(show)
  if $dry_run; then echo "$manifest" >&3; fi
  run_kubectl apply --filename=- <<<"$manifest"
}

# Prints Completed, Failed, or nothing while the training runs.
terminal_state() {
  run_kubectl get jobset "$name" --output='jsonpath={.status.terminalState}'
}

newest_worker_0() {
  run_kubectl get pods --sort-by=.metadata.creationTimestamp --output=name --selector="$(selector)" |
    tail -n 1
}

selector() {
  echo "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}

logs() {
  local state pod failures=0 since=()
  while :; do
    if state=$(terminal_state); then failures=0; else failures=$((failures + 1)); fi
    ((failures < 5)) || die 1 "kubectl cannot see the JobSet $name; the training may still be running"
    if pod=$(newest_worker_0) && [[ -n $pod ]]; then
      # A pod that does not run yet has no log. Lines that were shown are not shown again.
      if run_kubectl logs --follow "${since[@]}" "$pod"; then
        since=(--since-time="$(date -u +%Y-%m-%dT%H:%M:%SZ)")
      fi
    fi
    if $dry_run; then
      run_kubectl logs --follow POD
      return
    fi
    case $state in
      Completed)
        say "the training is done"
        return
        ;;
      Failed) report_failure ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

report_failure() {
  local statuses
  say "$(run_kubectl get jobset "$name" \
    --output='jsonpath={.status.conditions[?(@.type=="Failed")].message}')"
  statuses=$(run_kubectl get jobs --selector="jobset.sigs.k8s.io/jobset-name=$name" \
    --output='jsonpath={.items[*].status.conditions[?(@.type=="Failed")].message}')
  if [[ $statuses == *"exit code 2 "* ]]; then
    die 2 "the training ended with status 2, a mistake that a restart cannot fix; see its message above"
  fi
  die 1 "the training failed, and no restart is left (--max-restarts $max_restarts)"
}

run() {
  apply
  logs
}

status() {
  run_kubectl get jobset "$name"
  run_kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

delete() { run_kubectl delete jobset "$name" --ignore-not-found; }

take_phase "show apply logs run status delete" "$@"
shift

name='' image='' accelerator='' topology='' chips_per_host=4
service_account=default data_dir='' max_restarts=3 namespace=''
spot=false dry_run=false
training=()
take_options "--name --image --accelerator --topology --chips-per-host --service-account --data-dir \
  --max-restarts --namespace" "--spot --dry-run" "$@"
kubectl_options=()
[[ -z $namespace ]] || kubectl_options=("--namespace=$namespace")

refuse_secrets "in the JobSet" --image "$image" --data-dir "$data_dir" "${training[@]}"
label='^[a-z]([-a-z0-9]*[a-z0-9])?$'
[[ $name =~ $label ]] || die 2 "--name: give lower-case letters, digits and -, got '$name'"
[[ $max_restarts =~ ^[0-9]+$ ]] || die 2 "--max-restarts: give a whole number, got '$max_restarts'"
case $phase in
  show | apply | run)
    [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] ||
      die 2 "--image: give the image that launch/Dockerfile makes, got '$image'"
    [[ $accelerator =~ $label ]] || die 2 "--accelerator: give the label of the nodes, such as tpu-v5-lite-podslice"
    [[ $chips_per_host =~ ^[1-9][0-9]*$ ]] || die 2 "--chips-per-host: give a number, got '$chips_per_host'"
    hosts=$(hosts_of_slice "$accelerator" "$topology" "$chips_per_host")
    [[ $service_account =~ $label ]] || die 2 "--service-account: give a name, got '$service_account'"
    [[ ${training[0]:--} != -* ]] || die 2 "give the config and arguments of jaxcls train after --"
    workdir=$(workdir_of_training)
    [[ $workdir == *://* ]] ||
      die 2 "give --workdir with a bucket, such as gs://BUCKET/RUN: what a pod writes is lost with it"
    if [[ -n $data_dir ]]; then training+=(--data.data-dir "$data_dir"); fi
    ;;
esac
command -v kubectl >/dev/null || $dry_run ||
  die 2 "kubectl is not installed; see kubernetes.io/docs/tasks/tools"

exec 3>&1
trap 'say "interrupted. The training continues; delete it with: bash launch/gke.sh delete --name $name"; exit 130' INT TERM
"$phase"
