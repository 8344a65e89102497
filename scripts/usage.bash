# Sourced by the other scripts before they change their folder: what each says of itself, and of arguments that it does not know.
script=$(realpath "$0")

# Prints the comment at the script's head.
usage() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$script"
}

# Ends with the usage if one of the arguments asks for it; those after -- are another program's.
help_if_asked() {
    local argument
    for argument in "$@"; do
        case $argument in
            --) return ;;
            -h | --help)
                usage
                exit 0
                ;;
        esac
    done
}

# Ends with a line about the arguments, then the usage; the exit code is 2, as for every script here.
refuse_arguments() {
    printf '%s: %s\n\n' "${script##*/}" "$1" >&2
    usage >&2
    exit 2
}
