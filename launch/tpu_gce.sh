#!/usr/bin/env bash
# Trains on TPU machines of Compute Engine. `tpu_gce.sh --help` explains it.
#
# The machines are a managed instance group. Those of a slice of several hosts get a workload policy
# with the topology, and are created all or none (docs.cloud.google.com/compute/docs/tpus).
set -euo pipefail

# shellcheck source=launch/tpu_phases.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu_phases.sh"

AT_ONCE=16 # connections to machines at the same time

resource="managed instance group"
size_option=--topology
own_options="  --name NAME               name of the managed instance group; its instance template and workload policy
                            are called jaxcls-NAME
  --zone ZONE               for example us-central1-c (required)
  --machine-type TYPE       for example ct5p-hightpu-4t, ct6e-standard-4t or tpu7x-standard-4t (required)
  --topology TOPOLOGY       chips along each axis, for example 4x4 (v6e) or 2x2x4 (v5p, tpu7x); with
                            --machine-type it decides the number of machines (required)
  --image-family FAMILY     Ubuntu image with the drivers of this kind of TPU (required, unless there
                            is --instance-template); this lists them:
                            gcloud compute images list --no-standard-images \\
                              --project=ubuntu-os-accelerator-images
  --image-project PROJECT   (default: ubuntu-os-accelerator-images)
  --boot-disk-size SIZE     (default: 100GB)
  --service-account EMAIL   with access to the buckets (default: that of Compute Engine)
  --spot                    cheaper, and may be taken away at any time
  --instance-template NAME  a template of your own instead of --image-family, --image-project,
                            --boot-disk-size, --service-account and --spot; for reservations,
                            networks, disks, ...
  --project PROJECT         (default: that of \`gcloud config\`)"

tpu_state() { # ANSWER
  local answer problem
  answer=$(ask_if_there "$1" gcloud compute instance-groups managed list-instances "$name" \
    "${place[@]}" --format="value(instance.basename(),instanceStatus,currentAction,\
lastAttempt.errors.errors[0].code,lastAttempt.errors.errors[0].message)") || return 1
  case $answer in NOT_FOUND | ACTIVE) echo "$answer" && return ;; esac
  problem=$(awk -F '\t' '$5 != "" { print $5; exit }' <<<"$answer")
  if [[ $problem != "$(cat "$scratch/problem" 2>/dev/null)" ]]; then # say it once
    echo "$problem" >"$scratch/problem"
    [[ -z $problem ]] || say "$name: $problem"
  fi
  awk -F '\t' -v hosts="$hosts" '
    $2 == "RUNNING" { running++ }
    $2 ~ /STOP|SUSPEND|TERMINATED|DEPROVISIONING/ || $2 $3 == "NONE" { gone = 1 }
    $3 == "DELETING" { deleting = 1 }
    $4 ~ /QUOTA/ { refused = 1 }
    END {
      if (deleting) print "DELETING"
      else if (running == (hosts ? hosts : NR)) print "ACTIVE"
      else if (refused) print "FAILED"
      else if (gone) print "SUSPENDED"
      else print "PROVISIONING"
    }' <<<"$answer"
}

explain_state() { # STATE
  [[ $1 != FAILED ]] || explain_quota
}

request_tpu() {
  local template=$instance_template tier=() account=() slice=()
  machines=()
  say "asking for $hosts x $machine_type as $name"
  if [[ -z $template ]]; then
    template=jaxcls-$name
    if $spot; then tier=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
    [[ -z $service_account ]] || account=("--service-account=$service_account")
    request "instance template $template" gcloud compute instance-templates create "$template" \
      --machine-type="$machine_type" --image-family="$image_family" --image-project="$image_project" \
      --boot-disk-size="$boot_disk_size" --maintenance-policy=TERMINATE --scopes=cloud-platform \
      "${account[@]}" "${tier[@]}" "${in_project[@]}" || undo
  fi
  if ((hosts > 1)); then
    request "workload policy jaxcls-$name" gcloud compute resource-policies create workload-policy \
      "jaxcls-$name" --type=HIGH_THROUGHPUT --accelerator-topology="$topology" --region="$region" \
      "${in_project[@]}" || undo
    slice=(--target-size-policy-mode=bulk
      --workload-policy="regions/$region/resourcePolicies/jaxcls-$name")
  fi
  # A machine that is taken away must stay visible: the slice can only be created again as a whole.
  request "managed instance group $name" gcloud compute instance-groups managed create "$name" \
    --size="$hosts" --template="$template" --default-action-on-vm-failure=do-nothing "${slice[@]}" \
    "${place[@]}" || undo
}

undo() {
  delete_tpu || say "could not delete what was created for it; try: $(delete_command)"
  exit 1
}

delete_tpu() {
  machines=()
  delete_if_there instance-groups managed delete "$name" "${place[@]}" &&
    delete_if_there instance-templates delete "jaxcls-$name" "${in_project[@]}" &&
    delete_if_there resource-policies delete "jaxcls-$name" --region="$region" "${in_project[@]}"
}

delete_if_there() { ask_if_there '' gcloud compute "$@" --quiet >/dev/null; }

# ---- The machines, in the order of their numbers as workers

# Prints "jaxcls-worker NUMBER NAME". JAX numbers its processes by the same metadata
# (jax/_src/clusters/cloud_tpu_cluster.py).
# shellcheck disable=SC2016 # expanded on the machines
WHO_ARE_YOU='for key in attributes/agent-worker-number name; do curl -sf -H Metadata-Flavor:Google \
http://metadata.google.internal/computeMetadata/v1/instance/$key; echo; done | xargs echo jaxcls-worker'
WHO_ARE_YOU=${WHO_ARE_YOU//$'\\\n'/}

find_workers() {
  local answer names='' index
  ((${#machines[@]} == 0)) || return 0
  for ((index = 0; index < ${hosts:-1}; index++)); do names+=$name-$index$'\n'; done
  answer=$(retry ask_if_there "${names%$'\n'}" gcloud compute instance-groups managed list-instances \
    "$name" "${place[@]}" --format="value(instance.basename())") ||
    die 1 "cannot ask for the machines of $name"
  [[ -n $answer && $answer != NOT_FOUND ]] || die 1 "there are no machines of $name; create it first"
  readarray -t machines <<<"$answer"
  ((${#machines[@]} == 1)) || retry sort_machines ||
    die 1 "the machines of $name did not tell their numbers as workers (agent-worker-number in the" \
      "metadata of Compute Engine); is their image one for TPUs?"
}

sort_machines() {
  local answer number machine sorted=()
  answer=$(printf '%s\n' "${machines[@]}" | awk '{ print "jaxcls-worker", NR - 1, $1 }')
  answer=$(ask "$answer" ssh_workers all "$WHO_ARE_YOU") || return
  while read -r _ number machine; do
    sorted[number]=$machine
  done < <(grep -E '^jaxcls-worker [0-9]+ [^ ]+$' <<<"$answer")
  ((${#sorted[@]} == ${#machines[@]})) || return 1
  machines=("${sorted[@]}")
}

# at_once COMMAND ARGUMENT ...: runs COMMAND MACHINE ARGUMENT ... for all machines.
at_once() {
  local command=$1 machine pids=() status=0
  shift
  for machine in "${machines[@]}"; do
    "$command" "$machine" "$@" &
    pids+=($!)
    if $dry_run || ((${#pids[@]} >= AT_ONCE)); then # one after the other, or when one has ended
      wait "${pids[0]}" || status=$?
      pids=("${pids[@]:1}")
    fi
  done
  for machine in "${pids[@]}"; do wait "$machine" || status=$?; done
  return "$status"
}

ssh_machine() { # MACHINE COMMAND
  run_command gcloud compute ssh "$1" --quiet "${place[@]}" --command="$2"
}

ssh_workers() { # WORKERS COMMAND
  if [[ $1 == all ]]; then at_once ssh_machine "$2"; else ssh_machine "${machines[$1]}" "$2"; fi
}

copy_to_machine() { # MACHINE FILE
  run_command gcloud compute scp "$2" "$1:$(basename "$2")" --quiet "${place[@]}"
}

copy_to_workers() { at_once copy_to_machine "$1"; }

copy_from_worker_0() { # FOLDER
  run_command gcloud compute scp --recurse "${machines[0]}:$1" runs/ --quiet "${place[@]}"
}

# ---- The options

require_accelerator() {
  accelerator=$machine_type
  [[ -z $project ]] || in_project=("--project=$project")
  [[ $zone =~ ^[a-z0-9-]+-[a-z0-9]+$ ]] || die 2 "--zone: give one such as us-central1-c, got '$zone'"
  region=${zone%-*}
  ((${#name} <= 56)) || die 2 "--name: give at most 56 characters, got ${#name}"
  if [[ -n $machine_type$topology || $phase == create || $phase == run ]]; then
    [[ $machine_type =~ -([1-9][0-9]*)t$ ]] ||
      die 2 "--machine-type: give one that ends in its number of chips, such as tpu7x-standard-4t, got '$machine_type'"
    hosts=$(hosts_of_slice "$machine_type" "$topology" "${BASH_REMATCH[1]}")
  fi
  case $phase in create | run) ;; *) return ;; esac
  if [[ -z $instance_template ]]; then
    [[ -n $image_family ]] ||
      die 2 "give --image-family; this lists them: gcloud compute images list --no-standard-images" \
        "--project=$image_project"
  elif $spot; then
    die 2 "--spot: set it in the --instance-template (--provisioning-model=SPOT)"
  fi
}

machine_type='' topology='' image_family='' image_project=ubuntu-os-accelerator-images
boot_disk_size=100GB service_account='' instance_template=''
region='' hosts='' in_project=() machines=()
main "--machine-type --topology --image-family --image-project --boot-disk-size --service-account \
  --instance-template" "$@"
