# bash completion for fuse-gatectl
# Made by packaging/dev/completion.py from the program's parser: change that, and run: make man

# What can be named, one a line. Names are looked at once more: the shell must see nothing but names.
__fuse_gatectl_tenants() {
    fuse-gatectl check --json 2>/dev/null | sed -n 's/^ *"name": "\([a-z0-9][a-z0-9._-]*\)",\{0,1\}$/\1/p'
}
__fuse_gatectl_sessions() {
    fuse-gatectl sessions --json 2>/dev/null | sed -n 's/^ *"session": "\([0-9a-f]*\)",\{0,1\}$/\1/p'
}

_fuse_gatectl() {
    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" place=0 skip="" at part
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        part="${COMP_WORDS[at]}"
        if [[ -n $skip ]]; then skip=""; continue; fi
        case "$command $part" in
        ' --etc'|' --runtime') skip=1 ;;
        ' sessions') command=sessions place=0 ;;
        ' show') command=show place=0 ;;
        ' kick') command=kick place=0 ;;
        ' stats') command=stats place=0 ;;
        ' top') command=top place=0 ;;
        ' metrics') command=metrics place=0 ;;
        ' drain') command=drain place=0 ;;
        ' files') command=files place=0 ;;
        ' explain') command=explain place=0 ;;
        ' check') command=check place=0 ;;
        ' token') command=token place=0 ;;
        ' audit') command=audit place=0 ;;
        ' doctor') command=doctor place=0 ;;
        'stats --over') skip=1 ;;
        'top --interval') skip=1 ;;
        'metrics --listen'|'metrics --exports') skip=1 ;;
        'files ls') command='files ls' place=0 ;;
        'files cat') command='files cat' place=0 ;;
        'files get') command='files get' place=0 ;;
        'files put') command='files put' place=0 ;;
        'files rm') command='files rm' place=0 ;;
        'token new') command='token new' place=0 ;;
        'token new --expires'|'token new --note') skip=1 ;;
        'audit --tenant'|'audit --session'|'audit --path'|'audit --uid'|'audit --operation'|'audit --decision'|'audit --since'|'audit --until'|'audit --file'|'audit --runtime'|'audit --unit') skip=1 ;;
        *' '-*) ;;
        *) ((place += 1)) ;;
        esac
    done
    case "$command $previous" in
    ' --etc') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    ' --runtime') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'stats --over') :; return ;;
    'top --interval') :; return ;;
    'metrics --listen') :; return ;;
    'metrics --exports') :; return ;;
    'token new --expires') :; return ;;
    'token new --note') :; return ;;
    'audit --tenant') COMPREPLY=($(compgen -W "$(__fuse_gatectl_tenants)" -- "$word")); return ;;
    'audit --session') COMPREPLY=($(compgen -W "$(__fuse_gatectl_sessions)" -- "$word")); return ;;
    'audit --path') :; return ;;
    'audit --uid') :; return ;;
    'audit --operation') COMPREPLY=($(compgen -W "$__fuse_gatectl_operations" -- "$word")); return ;;
    'audit --decision') COMPREPLY=($(compgen -W "allowed denied failed" -- "$word")); return ;;
    'audit --since') :; return ;;
    'audit --until') :; return ;;
    'audit --file') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'audit --runtime') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'audit --unit') :; return ;;
    esac
    case "$command" in
    '')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --version --etc --runtime" -- "$word")); return; fi
        COMPREPLY=($(compgen -W "sessions show kick stats top metrics drain files explain check token audit doctor" -- "$word"))
        ;;
    sessions)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json" -- "$word")); return; fi
        ;;
    show)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json" -- "$word")); return; fi
        case $place in
        0) COMPREPLY=($(compgen -W "$(__fuse_gatectl_sessions)" -- "$word")) ;;
        esac
        ;;
    kick)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json" -- "$word")); return; fi
        case $place in
        *) COMPREPLY=($(compgen -W "$(__fuse_gatectl_sessions)" -- "$word")) ;;
        esac
        ;;
    stats)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json --over" -- "$word")); return; fi
        case $place in
        0) COMPREPLY=($(compgen -W "$(__fuse_gatectl_sessions)" -- "$word")) ;;
        esac
        ;;
    top)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json --interval --once" -- "$word")); return; fi
        ;;
    metrics)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --listen --exports --json" -- "$word")); return; fi
        ;;
    drain)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json --undo --wait --move" -- "$word")); return; fi
        ;;
    files)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help" -- "$word")); return; fi
        COMPREPLY=($(compgen -W "ls cat get put rm" -- "$word"))
        ;;
    'files ls')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json -l --long" -- "$word")); return; fi
        case $place in
        0) : ;;
        esac
        ;;
    'files cat')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help" -- "$word")); return; fi
        case $place in
        *) : ;;
        esac
        ;;
    'files get')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help" -- "$word")); return; fi
        case $place in
        0) : ;;
        1) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        esac
        ;;
    'files put')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help" -- "$word")); return; fi
        case $place in
        0) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        1) : ;;
        esac
        ;;
    'files rm')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help -r --recursive" -- "$word")); return; fi
        case $place in
        *) : ;;
        esac
        ;;
    explain)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json --directory --replaces" -- "$word")); return; fi
        case $place in
        0) COMPREPLY=($(compgen -W "$(__fuse_gatectl_tenants)" -- "$word")) ;;
        1) : ;;
        2) COMPREPLY=($(compgen -W "$__fuse_gatectl_operations" -- "$word")) ;;
        3) : ;;
        esac
        ;;
    check)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json" -- "$word")); return; fi
        case $place in
        0) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        esac
        ;;
    token)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help" -- "$word")); return; fi
        COMPREPLY=($(compgen -W "new" -- "$word"))
        ;;
    'token new')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json --expires --note" -- "$word")); return; fi
        case $place in
        0) COMPREPLY=($(compgen -W "$(__fuse_gatectl_tenants)" -- "$word")) ;;
        esac
        ;;
    audit)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --tenant --session --path --uid --operation --decision --since --until --file --runtime --unit --verify --json" -- "$word")); return; fi
        ;;
    doctor)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --json" -- "$word")); return; fi
        ;;
    esac
}
complete -F _fuse_gatectl fuse-gatectl
__fuse_gatectl_operations='lookup getattr statfs access open open-read open-write open-execute read readlink getxattr listxattr lseek write fallocate setattr chmod chown truncate utimens setxattr removexattr copy_file_range getlk setlk flush release fsync create mknod mkdir symlink link unlink rmdir rename exchange opendir readdir releasedir fsyncdir'
