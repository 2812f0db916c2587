# What gke.sh and tpu_pod.sh share: messages, quoting, and how they read their options. They source it.
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

# take_options "VALUED ..." "SWITCH ..." ARGUMENT ...: reads options up to --, and what follows it into
# the list `training`. `--chips-per-host 8` and `--chips-per-host=8` set chips_per_host=8, and of an
# option that is given twice the last value counts; `--spot` sets spot=true.
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
      die 2 "'$1' is no option; give the config and arguments of jaxcls train after --"
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
        # What looks like an option is one, and the value was forgotten.
        [[ $# -ge 2 && $2 != -* ]] ||
          die 2 "$option: give a value (one that begins with -, as $option=VALUE)"
        value=$2
        shift 2
      fi
      [[ $value == *[![:space:]]* ]] || die 2 "$option: give a value, got '$value'"
      case $value in \~ | \~/*) value=$home${value:1} ;; esac # a shell leaves it after =
      printf -v "$variable" %s "$value"
    else
      die 2 "unknown option $option; see bash launch/$launcher.sh --help"
    fi
  done
}

# Where the training lies as far as its arguments say: the value of --workdir, or the run in a bucket
# that stands in place of the config; else nothing.
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
