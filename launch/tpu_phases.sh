# The phases of tpu_pod.sh and tpu_gce.sh, which source this file after they have defined how their
# service creates TPUs and reaches the workers:
#
#   own_options           the part of the help that lists their own options
#   tpu_state ANSWER      prints the state of the TPU: ACTIVE if it is ready, NOT_FOUND if there is none,
#                         SUSPENDING or SUSPENDED if it was taken away, FAILED, DELETING, or another
#                         word while it is being created; in a dry run, the ANSWER
#   explain_state STATE   prints why the TPU is in the state FAILED, SUSPENDED, ...
#   request_tpu           asks for the TPU, with `request`; exits if it is refused
#   delete_tpu            deletes it, and waits for that
#   find_workers          finds out which machines the workers are, where that must be asked
#   copy_to_workers FILE  copies a file into the home of all workers
#   copy_from_worker_0 FOLDER   copies a folder of worker 0 to runs/
#   ssh_workers WORKERS COMMAND   runs a shell command on worker 0 or all
#   require_accelerator   checks the options that describe the TPU
#
# Then `main` reads the command line and runs the phase.
# shellcheck shell=bash

# shellcheck source=launch/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

POLL_SECONDS=${JAXCLS_POLL_SECONDS:-30}
BACKOFF_SECONDS=${JAXCLS_BACKOFF_SECONDS:-5}
ATTEMPTS=5
SILENT_LOOKS=20 # checks during which worker 0 may write nothing, before the training is stopped

usage() {
  cat <<END
usage: bash launch/$launcher.sh PHASE --name NAME [option ...] [-- CONFIG [option of jaxcls train ...]]

  create    ask for a TPU and wait until it is ready
  install   copy the code, configs/ and, with --stage, the data to all workers
  start     start the training on all workers; where it is running already, it continues
  logs      show the log of worker 0 until the training ends
  status    show the state of the TPU and the training
  stop      ask the training to save and exit; interrupt a \`run\` that is attached first (Ctrl-C),
            or it starts the training again
  run       create, install, start and logs; and again after a preemption, a stop or a crash
  collect   copy the run from worker 0 to runs/, or say in which bucket it is
  delete    delete the TPU

Give every phase the same options and arguments.

$own_options
  --code SOURCE             a folder (default: the one that holds launch/), a wheel, or a URL that pip
                            takes, such as git+https://HOST/PATH@COMMIT
  --data-dir gs://PATH      folder of the prepared data sets
  --stage                   copy them to each worker's disk first, instead of reading the bucket
  --create-timeout SECONDS  how long to wait for the TPU (default: 86400)
  --max-restarts N          run: restarts after a crash; those after a preemption or a stop do not
                            count (default: 3)
  --delete                  run: delete the TPU when the training has ended, even if it failed
  --dry-run                 print the commands, run nothing

Exit status: 0 done; 2 your mistake (or the training's exit status 2), which a restart cannot fix;
otherwise 1. The TPU is checked every JAXCLS_POLL_SECONDS (30). A failed ssh is tried again after
JAXCLS_BACKOFF_SECONDS (5), then after twice as long, and so on, five times in all.
END
}

# ---- Commands. Every command that leaves this machine is run by `run_command` or `ask`.

run_command() {
  if $dry_run; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

# ask ANSWER COMMAND ...: prints the command's output; in a dry run the ANSWER, so that it continues.
ask() {
  local answer=$1
  shift
  "$@" || return
  if $dry_run; then echo "$answer"; fi
}

# ask_if_there ANSWER COMMAND ...: like `ask`; prints NOT_FOUND if the command says that there is none.
ask_if_there() {
  local errors answer status=0
  errors=$(mktemp "$scratch/errors.XXXXXX")
  answer=$(ask "$1" run_command "${@:2}" 2>"$errors") || status=$?
  if ((status == 0)); then
    echo "$answer"
  elif grep -qE 'NOT_FOUND|The resource .* was not found' "$errors"; then
    echo NOT_FOUND
  else
    cat "$errors" >&2
    return 1
  fi
}

# Runs a command until it succeeds, at most ATTEMPTS times. Status 2 is a mistake and not tried again.
retry() {
  local delay=$BACKOFF_SECONDS attempt status
  for ((attempt = 1; ; attempt++)); do
    status=0
    "$@" || status=$?
    if ((status == 0 || status == 2 || attempt == ATTEMPTS)); then return "$status"; fi
    say "this failed with status $status (attempt $attempt of $ATTEMPTS); again in $delay s"
    sleep "$delay"
    delay=$((delay * 2))
  done
}

on_workers() { # WORKERS COMMAND ...: runs tpu_worker.sh COMMAND there
  local workers=$1
  shift
  ssh_workers "$workers" "bash jaxcls/launch/tpu_worker.sh $(quoted "$@")"
}

# ---- The TPU

create() {
  local state
  state=$(retry tpu_state NOT_FOUND) || die 1 "cannot ask for the state of $name"
  while [[ $state == DELETING ]]; do
    sleep "$POLL_SECONDS"
    state=$(retry tpu_state NOT_FOUND) || die 1 "cannot ask for the state of $name"
  done
  case $state in
    NOT_FOUND) request_tpu ;;
    FAILED | SUSPENDING | SUSPENDED)
      say "the $resource $name is $state and will not come back; creating it again"
      delete
      request_tpu
      ;;
    *) say "the $resource $name exists already ($state)" ;;
  esac
  tpu_exists=true
  wait_until_active
}

# request WHAT COMMAND ...: runs the command that asks for it; explains a refusal and returns 1.
request() {
  local what=$1 errors
  shift
  errors=$(mktemp "$scratch/errors.XXXXXX")
  if run_command "$@" 2>"$errors"; then
    cat "$errors" >&2
    return
  fi
  cat "$errors" >&2
  if grep -qiE 'quota|RESOURCE_EXHAUSTED' "$errors"; then
    explain_quota
  else
    say "gcloud could not create the $what; see its message above"
  fi
  return 1
}

explain_quota() {
  local kind=$accelerator
  if $spot; then kind+=" (spot)"; fi
  say "the project has no quota for $kind in this zone: ask for more on the console's page IAM &" \
    "Admin > Quotas, or use another --zone, a smaller $size_option, or --spot, which has its own quota"
}

wait_until_active() {
  local state last='' deadline=$((SECONDS + create_timeout))
  while :; do
    state=$(retry tpu_state ACTIVE) || die 1 "cannot ask for the state of $name"
    [[ $state == "$last" ]] || say "$name is $state"
    last=$state
    case $state in
      ACTIVE) return ;;
      SUSPENDING | SUSPENDED) # a spot TPU that was taken away before it was ready
        [[ $phase == run ]] || not_ready "$state"
        say "$name was taken away before it was ready; asking for another one"
        delete
        request_tpu
        tpu_exists=true
        ;;
      FAILED | DELETING | NOT_FOUND) not_ready "$state" ;;
    esac
    if ((SECONDS >= deadline)); then
      die 1 "$name is still $state after $create_timeout s (--create-timeout). It stays in the queue:" \
        "the same command waits again, and this removes it: $(delete_command)"
    fi
    sleep "$POLL_SECONDS"
  done
}

not_ready() { # STATE
  explain_state "$1" >&2 || true
  die 1 "$name did not become ready: it is $1. Delete it with: $(delete_command)"
}

delete_command() { quoted bash "launch/$launcher.sh" delete --name "$name" "${place[@]}"; }

delete() {
  say "deleting $name"
  retry delete_tpu
  tpu_exists=false
}

# ---- The code and the training

install() {
  local archive=$scratch/jaxcls.tar.gz source=. extra=()
  case $code in
    *.whl)
      [[ -f $code ]] || die 2 "--code: there is no wheel $code"
      source=wheels/$(basename "$code")
      mkdir -p "$scratch/wheels"
      cp "$code" "$scratch/wheels/"
      extra=(--directory="$scratch" wheels)
      ;;
    *://*) source=$code ;;
    *)
      [[ -f $code/pyproject.toml ]] || die 2 "--code: there is no pyproject.toml in $code"
      extra=(--directory="$(cd "$code" && pwd)" pyproject.toml README.md LICENSE jaxcls)
      ;;
  esac
  find_workers
  run_command tar --create --gzip --file="$archive" --exclude=__pycache__ --directory="$root" \
    launch/tpu_worker.sh configs "${extra[@]}"
  retry copy_to_workers "$archive" || die 1 "cannot copy the code to the workers"
  retry ssh_workers all "mkdir -p jaxcls && tar -xzf jaxcls.tar.gz -C jaxcls" ||
    die 1 "cannot unpack the code on the workers"
  retry on_workers all install "$source" || die 1 "cannot install jaxcls on the workers"
  if $stage; then
    retry on_workers all stage "$data_dir" || die 1 "cannot copy $data_dir to the workers"
  fi
}

start() {
  find_workers
  : >"$log"
  retry on_workers all start "${training[@]}" || die 1 "cannot start the training on all workers"
}

# Shows new lines of worker 0's log until the training or the connection ends.
show_log() {
  on_workers 0 logs "$(($(wc -l <"$log") + 1))" | tee -a "$log"
}

logs() {
  find_workers
  retry show_log
}

# Prints the state of the training over all workers: running, 0, 2, 75, lost (a worker knows of no
# training), or crashed STATUS.
training_state() {
  local lines states
  lines=$(retry ask "jaxcls-status worker-0 exited 0" on_workers all status) || return 1
  states=$(sed -n 's/^jaxcls-status [^ ]* //p' <<<"$lines" | sort -u)
  case $'\n'$states$'\n' in
    *$'\nrunning\n'*) echo running ;;
    *$'\nexited 2\n'*) echo 2 ;;
    *$'\nabsent\n'* | $'\n\n') echo lost ;;
    $'\nexited 0\n') echo 0 ;;
    *) grep -vxE 'exited (0|75)' <<<"$states" | head -n 1 | sed 's/exited/crashed/' | grep . || echo 75 ;;
  esac
}

# Shows the log until the training has ended on all workers; sets `outcome` to its state, or to
# preempted.
watch_training() {
  local state silent=0 lines=0 last_lines=0
  while :; do
    show_log || say "the connection to worker 0 has ended"
    state=$(retry tpu_state ACTIVE) || die 1 "cannot ask for the state of $name; the training continues"
    if [[ $state != ACTIVE ]]; then
      say "$name is $state"
      outcome=preempted
      return
    fi
    # If a worker was taken away a moment ago, the state of the TPU changes only a little later.
    outcome=$(training_state) || outcome=unreachable
    case $outcome in running | unreachable) ;; *) return ;; esac
    lines=$(wc -l <"$log")
    silent=$((lines > last_lines ? 0 : silent + 1))
    last_lines=$lines
    if ((silent == SILENT_LOOKS)); then
      say "worker 0 is silent and the training is $outcome; stopping it"
      return
    fi
    sleep "$POLL_SECONDS"
  done
}

run() {
  local crashes=0
  create
  install
  while :; do
    start
    watch_training
    case $outcome in
      0)
        say "the training is done"
        ended=true
        return
        ;;
      2)
        ended=true
        die 2 "the training ended with status 2, a mistake that a restart cannot fix; see its message above"
        ;;
      75) say "the training was stopped after a save; starting it again" ;;
      preempted | lost)
        say "the TPU was taken away; asking for another one"
        create
        install
        continue
        ;;
      *)
        say "the training ended: $outcome"
        if ((crashes >= max_restarts)); then
          ended=true
          die 1 "no restart is left (--max-restarts $max_restarts)"
        fi
        crashes=$((crashes + 1))
        say "starting it again (restart $crashes of $max_restarts)"
        ;;
    esac
    retry on_workers all stop || say "not all workers could be told to stop"
  done
}

status() {
  say "$name is $(tpu_state ACTIVE)"
  find_workers
  on_workers all status
}

stop() {
  find_workers
  retry on_workers all stop
}

collect() {
  case $workdir in
    *://*)
      say "the run is in $workdir; copy it with:" \
        "$(quoted gcloud storage rsync --recursive "$workdir" "runs/$(basename "$workdir")")"
      ;;
    *)
      find_workers
      run_command mkdir -p runs
      retry copy_from_worker_0 "jaxcls/$workdir" || die 1 "cannot copy $workdir from worker 0"
      ;;
  esac
}

# ---- The command line

require_training() {
  [[ ${training[0]:--} != -* ]] || die 2 "give the config and arguments of jaxcls train after --"
  [[ (-f $root/${training[0]} && ${training[0]} == configs/*) || ${training[0]} == *://* ]] ||
    die 2 "${training[0]}: the config must be a file of configs/, which is copied to the workers," \
      "or a run in a bucket"
  workdir=$(workdir_of_training)
  if [[ -z $workdir ]]; then # the default of jaxcls train would also name the changed fields
    workdir=runs/$(basename "${training[0]}" .py)
    training+=(--workdir "$workdir")
  fi
  [[ $workdir == *://* || $phase == collect ]] ||
    say "warning: $workdir is on the workers' disks and is lost with them; give --workdir gs://..."
}

finish() {
  local status=$?
  trap - EXIT INT TERM
  if $tpu_exists && [[ $phase == run ]]; then
    if $delete_after && $ended; then
      delete || say "could not delete $name"
    else
      $dry_run || say "the TPU still exists and costs money; delete it with: $(delete_command)"
    fi
  fi
  rm -rf "$scratch"
  exit "$status"
}

interrupt() {
  say "interrupted. The training on the TPU continues; the same command attaches to it again"
  exit 130
}

own_options='' resource='' size_option='' accelerator='' # of the sourcing script
name='' data_dir='' zone='' project=''
create_timeout=86400 max_restarts=3
spot=false stage=false dry_run=false delete=false
ended=false tpu_exists=false
place=() training=()
outcome='' workdir=''
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
code=$root

# main "VALUED ..." ARGUMENT ...: runs the phase; VALUED are the options of the launcher itself, as in
# `take_options`.
main() {
  local own=$1
  shift
  take_phase "create install start logs status stop run collect delete" "$@"
  shift

  take_options "--name --zone --project --code --data-dir --create-timeout --max-restarts $own" \
    "--spot --stage --delete --dry-run" "$@"
  delete_after=$delete
  [[ -z $zone ]] || place+=("--zone=$zone")
  [[ -z $project ]] || place+=("--project=$project")

  refuse_secrets "on the machines" --code "$code" --data-dir "$data_dir" "${training[@]}"
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die 2 "--name: give lower-case letters, digits and -, got '$name'"
  [[ $create_timeout =~ ^[0-9]+$ ]] || die 2 "--create-timeout: give whole seconds, got '$create_timeout'"
  [[ $max_restarts =~ ^[0-9]+$ ]] || die 2 "--max-restarts: give a whole number, got '$max_restarts'"
  [[ -z $data_dir || $data_dir == gs://* ]] || die 2 "--data-dir: give a gs:// path, got '$data_dir'"
  if $stage && [[ -z $data_dir ]]; then die 2 "--stage: also give --data-dir, the folder to copy"; fi
  if ((${#training[@]})) && [[ -n $data_dir ]]; then
    if $stage; then training+=(--data.data-dir data); else training+=(--data.data-dir "$data_dir"); fi
  fi
  command -v gcloud >/dev/null || $dry_run ||
    die 2 "gcloud is not installed; see cloud.google.com/sdk/docs/install"

  exec 3>&1
  scratch=$(mktemp -d)
  log=$scratch/log.txt
  : >"$log"
  trap finish EXIT
  trap interrupt INT TERM

  require_accelerator
  case $phase in start | run | collect) require_training ;; esac
  "$phase"
}
