# Messages, quoting, phases and options of gke.sh, tpu_pod.sh and tpu_gce.sh, which source this file.
#
# `take_options` sets shell variables that are named after the options: --chips-per-host 8 sets
# chips_per_host=8, --spot sets spot=true, and what follows -- becomes the array `training`. The
# sourcing script must set the defaults of all of them first.
# shellcheck shell=bash

launcher=$(basename "$0" .sh)
umask o-w # not every user may change what this writes

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$launcher: bash 4.4 or newer is needed; this is $BASH_VERSION" >&2
  exit 2
fi

say() { echo "$launcher: $*" >&2; }

die() { # STATUS MESSAGE
  local status=$1
  shift
  say "$*"
  exit "$status"
}

# The words as a shell would read them back.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+%-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line:1}"
}

# take_phase "PHASE ..." ARGUMENT ...: sets phase to the first argument, or explains the phases.
take_phase() {
  phase=${2:-}
  if [[ $phase =~ ^[a-z]+$ && " $1 " == *" $phase "* ]]; then return; fi
  case $phase in
    -h | --help | help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
}

# take_options "VALUED ..." "SWITCH ..." ARGUMENT ...: sets the variables of the options up to --. A
# value may follow after a space or after =. If an option is given twice, the last value counts.
take_options() {
  local valued=" $1 " switches=" $2 " option value variable home=~
  shift 2
  while (($#)); do
    option=${1%%=*}
    variable=${option#--}
    variable=${variable//-/_}
    case $1 in
      --)
        shift
        training=("$@")
        return
        ;;
      --help | -h)
        usage
        exit 0
        ;;
    esac
    if [[ ! $1 =~ ^-[^[:space:]] ]]; then
      die 2 "'$1' is not an option; give the config and arguments of jaxcls train after --"
    elif [[ ! $option =~ ^--[a-z-]+$ ]]; then
      die 2 "unknown option $option; see bash launch/$launcher.sh --help"
    elif [[ $switches == *" $option "* ]]; then
      [[ $1 == "$option" ]] || die 2 "$option takes no value, got '${1#*=}'"
      printf -v "$variable" true
      shift
    elif [[ $valued == *" $option "* ]]; then
      if [[ $1 == *=* ]]; then
        value=${1#*=}
        shift
      else
        # If the next word looks like an option, the value was forgotten.
        [[ $# -ge 2 && $2 != -* ]] ||
          die 2 "$option: give a value (a value that begins with - as $option=VALUE)"
        value=$2
        shift 2
      fi
      [[ $value == *[![:space:]]* ]] || die 2 "$option: give a value, got '$value'"
      case $value in \~ | \~/*) value=$home${value:1} ;; esac # a shell does not replace ~ after =
      printf -v "$variable" %s "$value"
    else
      die 2 "unknown option $option; see bash launch/$launcher.sh --help"
    fi
  done
}

# Prints the run's directory if the arguments of the training name it: the value of --workdir, or the
# run in a bucket that is given instead of a config. Otherwise prints nothing.
workdir_of_training() {
  local index workdir=''
  case ${training[0]:-} in *://*) workdir=${training[0]%/config.json} ;; esac
  for ((index = 0; index < ${#training[@]}; index++)); do
    case ${training[index]} in
      --workdir=*) workdir=${training[index]#*=} ;;
      --workdir) workdir=${training[index + 1]:-} ;;
      *) continue ;;
    esac
    [[ -n $workdir && $workdir != -* ]] || die 2 "--workdir: give a value"
  done
  echo "$workdir"
}

# refuse_secrets WHERE WORD ...: ends with a message if a word has a password or token in it, which would
# stay WHERE.
refuse_secrets() {
  local where=$1 word option=''
  shift
  for word in "$@"; do
    [[ ! $word =~ ^(--[A-Za-z0-9._-]+)(=|$) ]] || option="${BASH_REMATCH[1]}: "
    ! has_secret "$word" ||
      die 2 "${option}this has a password or token in it, which would stay $where; leave it to the" \
        "environment, or to the file of a login, of the program that needs it"
  done
}

# has_secret WORD: whether it has a password, a token or a signature in it. It knows the kinds of
# jaxcls/system/terminal_text.py and refuses somewhat more, for example every parameter of an address.
has_secret() {
  local text=${1,,} pattern rest quote=$'[\'"]?' value=$'[^]&;#,[:space:]\'"<>)}]'
  local kind='(token|bearer|basic|digest|negotiate|apikey|aws4-hmac-sha256)' # of Authorization
  # What comes before @ in an address; a name without a password is none in one of ssh.
  rest=$text
  while [[ $rest =~ ([a-z][a-z0-9+.-]*)://([^/?#[:space:]]*)@ ]]; do
    [[ ${BASH_REMATCH[1]} == *ssh* && ${BASH_REMATCH[2]} != *:* ]] || return 0
    rest=${rest#*"${BASH_REMATCH[0]}"}
  done
  # user:password@host; but not mailto:NAME@HOST, KIND:NAME@HOST or NAME:TAG@sha256:DIGEST.
  rest=$text
  pattern=$'(^|[^a-z0-9_.%+/@-])([^][:space:]/:@\'"=<>(){},;|[]+):[^[:space:]/\'"<>]+@([a-z0-9_]+)'
  while [[ $rest =~ $pattern ]]; do
    case "${BASH_REMATCH[2]} ${BASH_REMATCH[3]}" in
      "mailto "* | "digits "* | "folder "* | "tfds "* | "hf "*) rest=${rest#*"${BASH_REMATCH[2]}:"} ;;
      *" sha256") rest=${rest#*"${BASH_REMATCH[0]}"} ;;
      *) return 0 ;;
    esac
  done
  for pattern in '://[^[:space:]]*[?]' \
    "[?&;#][a-z0-9_.-]*(token|key|secret|sig|password|passwd|pwd|auth|credential)[a-z0-9_.-]*=$value" \
    "(^|[^a-z0-9_])authorization${quote}[[:space:]]*[:=][[:space:]]*$quote(${kind}[[:space:]]|[a-z0-9_.~+/=-]*[0-9])" \
    '(^|[^a-z0-9_])(bearer|basic)[[:space:]]+[a-z0-9_.~+/=-]{8}' \
    "(^|[^a-z0-9_.-])(x-[a-z-]*(token|key|secret)|(private|job)-token|api-?key)${quote}[[:space:]]*:" \
    "(^|[^a-z0-9_.-])((access|refresh|id|auth)_?token|client_?secret|api_?key|password|passwd)${quote}[[:space:]]*[:=]"; do
    [[ ! $text =~ $pattern ]] || return 0
  done
  # The names of variables such as HF_TOKEN, and tokens whose beginning says whose they are.
  pattern='(^|[^A-Za-z0-9_-])[sr]k[-_]([A-Za-z0-9_-]{16,})'
  [[ ! ($1 =~ $pattern && ${BASH_REMATCH[2]} == *[0-9]*) ]] || return 0
  pattern=$'(^|[^A-Za-z0-9_])([A-Z0-9]+_)*(TOKEN|KEY|SECRET|PASSWORD)(=|[\'"]:[[:space:]])'
  [[ ! $1 =~ $pattern ]] || return 0
  for pattern in '(hf_|api_org_|gh[a-z]_|npm_)([A-Za-z0-9]{20}|[A-Za-z]*[0-9][A-Za-z0-9]{4})' \
    '(github_pat_|dckr_pat_|glpat-|pypi-|GOCSPX-|wandb_v1_|AIza|ya29[.])[A-Za-z0-9_-]{16}' \
    '(xox[a-z]|xapp)-[A-Za-z0-9_-]{8}' '(AKIA|ASIA)[A-Z0-9]{12}' \
    'eyJ[A-Za-z0-9_-]{8,}[.]eyJ[A-Za-z0-9_-]{8}'; do
    [[ ! $1 =~ (^|[^A-Za-z0-9_-])$pattern ]] || return 0
  done
  return 1
}

# hosts_of_slice ACCELERATOR TOPOLOGY CHIPS_PER_HOST: prints the number of hosts of a TPU slice.
# ACCELERATOR is GKE's label of the nodes or Compute Engine's machine type; how many dimensions the
# topologies of unknown ones have is not checked.
hosts_of_slice() {
  local accelerator=$1 topology=$2 chips_per_host=$3 numbers='' example=4x4 chips
  case $accelerator in
    tpu-v5-lite-* | tpu-v6e-* | ct6e-*) numbers=two ;;
    tpu-v4-* | tpu-v5p-* | ct5p-* | tpu7x | tpu7x-*) numbers=three example=2x2x4 ;;
  esac
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    die 2 "--topology: give one such as $example, got '$topology'"
  [[ -z $numbers || ${topology//[0-9]/} == "${example//[0-9]/}" ]] ||
    die 2 "--topology: $accelerator takes $numbers numbers, such as $example, got '$topology'"
  chips=$((${topology//x/*}))
  ((chips % chips_per_host == 0)) ||
    die 2 "--topology: the $chips chips of $topology are not a multiple of the $chips_per_host chips of a host"
  echo "$((chips / chips_per_host))"
}
