# bash completion for fuse-gate
# Made by packaging/dev/completion.py from the program's parser: change that, and run: make man

_fuse_gate() {
    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" place=0 skip="" at part
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        part="${COMP_WORDS[at]}"
        if [[ -n $skip ]]; then skip=""; continue; fi
        case "$command $part" in
        ' export') command=export place=0 ;;
        'export --server'|'export --token-file'|'export --name'|'export --ca'|'export --cert'|'export --key'|'export --reconnect-delay'|'export --reconnect-max'|'export --max-attempts'|'export --dead-after') skip=1 ;;
        *' '-*) ;;
        *) ((place += 1)) ;;
        esac
    done
    case "$command $previous" in
    'export --server') :; return ;;
    'export --token-file') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'export --name') :; return ;;
    'export --ca') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'export --cert') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'export --key') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'export --reconnect-delay') :; return ;;
    'export --reconnect-max') :; return ;;
    'export --max-attempts') :; return ;;
    'export --dead-after') :; return ;;
    esac
    case "$command" in
    '')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --version" -- "$word")); return; fi
        COMPREPLY=($(compgen -W "export" -- "$word"))
        ;;
    export)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --server --token-file --name --read-only --no-watch --json --ca --cert --key --trust-server --reconnect-delay --reconnect-max --max-attempts --no-reconnect --dead-after --version" -- "$word")); return; fi
        case $place in
        0) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        esac
        ;;
    esac
}
complete -F _fuse_gate fuse-gate
