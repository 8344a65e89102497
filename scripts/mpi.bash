# Sourced by scripts that run programs under MPI, from the repository's root, after usage.bash.

# Whether what the crate adapters/mpi is built with, and run by, is there: a compiler wrapper of an MPI library, its mpirun, and libclang
# with the headers of its compiler. Where it is not, and apt-get may be used (as root, or by sudo without a password), it is installed.
mpi_is_there() {
    if found_mpi; then return; fi
    local as_root=()
    if [[ $(id -u) != 0 ]]; then
        sudo --non-interactive true 2>/dev/null || return 1
        as_root=(sudo --non-interactive)
    fi
    command -v apt-get >/dev/null || return 1
    echo "installing Open MPI and libclang" >&2
    "${as_root[@]}" apt-get update -qq >&2 || return 1
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev >&2 || return 1
    found_mpi
}

found_mpi() {
    command -v mpicc mpirun >/dev/null || return 1
    # The headers are a package of their own; without them bindgen finds no stddef.h.
    [[ -n ${LIBCLANG_PATH-} ]] || compgen -G "/usr/lib*/clang/*/include/stddef.h" >/dev/null \
        || compgen -G "/usr/lib*/llvm*/lib*/clang/*/include/stddef.h" >/dev/null
}

# What to say where it is not.
mpi_is_missing="MPI or libclang was not found and could not be installed (Debian: apt-get install libopenmpi-dev openmpi-bin libclang-dev)"

# Runs a program on so many ranks of this machine: on_ranks RANKS PROGRAM ARGUMENT...
on_ranks() {
    local options=()
    if mpirun --version 2>/dev/null | grep -q "Open MPI"; then
        # More ranks than cores, each on any core: it would bind a rank with all of its threads to one.
        options=(--oversubscribe --bind-to none)
        if [[ $(id -u) == 0 ]]; then options+=(--allow-run-as-root); fi
    fi
    mpirun "${options[@]}" -n "$@"
}

# A cargo command in the crate adapters/mpi, a workspace of its own.
mpi_cargo() {
    env --chdir adapters/mpi cargo "$@"
}

# The path of a program of that crate, built as asked: mpi_program NAME cargo-arguments...
mpi_program() {
    local name=$1 path
    shift
    path=$(mpi_cargo "$@" --message-format json | sed -n "s/.*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p")
    [[ -x $path ]] || { echo "${script##*/}: cargo $* made no program $name" >&2; return 1; }
    printf '%s\n' "$path"
}
