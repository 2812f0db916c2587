# Messages, quoting and options of gke.sh and tpu_pod.sh, which source this file.
#
# `take_options` sets shell variables that are named after the options: --chips-per-host 8 sets
# chips_per_host=8, --spot sets spot=true, and what follows -- becomes the array `training`. The
# sourcing script must set the defaults of all of them first.
# shellcheck shell=bash

launcher=$(basename "$0" .sh)

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
