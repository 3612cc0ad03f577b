# bash completion for fuse-gated
# Made by packaging/dev/completion.py from the program's parser: change that, and run: make man

_fuse_gated() {
    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" place=0 skip="" at part
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        part="${COMP_WORDS[at]}"
        if [[ -n $skip ]]; then skip=""; continue; fi
        case "$command $part" in
        ' --etc'|' --runtime'|' --listen') skip=1 ;;
        *' '-*) ;;
        *) ((place += 1)) ;;
        esac
    done
    case "$command $previous" in
    ' --etc') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    ' --runtime') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    ' --listen') :; return ;;
    esac
    case "$command" in
    '')
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "-h --help --etc --runtime --listen --version" -- "$word")); return; fi
        ;;
    esac
}
complete -F _fuse_gated fuse-gated
