// cli/completion.ts: `cellar completion SHELL`: a script that has the shell ask `cellar __complete` for each Tab.
//
// The scripts know nothing of commands: they stay right when Cellar is upgraded. All of them show words and what they
// are, where the shell can, and files where files fit.

import type { Call } from './commands.ts'
import { print } from './print.ts'

// COMP_WORDS is split at = and :, which are parts of our words: __reassemble joins them again, as bash-completion does.
const BASH = `# bash completion of cellar: cellar completion bash
_cellar() {
  local line="\${COMP_LINE:0:COMP_POINT}" word rest i cut
  local -a words=() given=("\${COMP_WORDS[@]:0:COMP_CWORD+1}")
  # What bash has split at "=" and ":" is one word again if no blank was between.
  rest="$line"
  for word in "\${given[@]}"; do
    if [[ \${#words[@]} -gt 0 && "$rest" == "$word"* && "$rest" != [[:space:]]* && -n "$word" ]]; then
      words[\${#words[@]}-1]+="$word"
    else
      rest="\${rest#"\${rest%%[![:space:]]*}"}"
      words+=("$word")
    fi
    rest="\${rest#"$word"}"
  done
  local current="\${words[\${#words[@]}-1]}" kind=none
  COMPREPLY=()
  while IFS= read -r word; do
    case $word in
      :file|:folder|:none) kind=\${word#:} ;;
      *) COMPREPLY+=("\${word%%$'\\t'*}") ;;
    esac
  done < <("\${words[0]}" __complete -- "\${words[@]:1}" 2>/dev/null)
  # Bash replaces what follows the last "=" or ":" only.
  cut="\${current%"\${current##*[=:]}"}"
  if [[ -n $cut ]]; then
    for i in "\${!COMPREPLY[@]}"; do COMPREPLY[i]="\${COMPREPLY[i]#"$cut"}"; done
  fi
  if [[ $kind != none ]]; then
    local -a more
    if [[ $kind == folder ]]; then mapfile -t more < <(compgen -d -- "$current")
    else mapfile -t more < <(compgen -f -- "$current"); fi
    COMPREPLY+=("\${more[@]}")
    compopt -o filenames 2>/dev/null
  fi
  [[ \${#COMPREPLY[@]} -eq 1 && \${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -F _cellar cellar
`

const ZSH = `#compdef cellar
# zsh completion of cellar: cellar completion zsh
_cellar() {
  local line kind=none
  local -a shown
  while IFS= read -r line; do
    case $line in
      :file|:folder|:none) kind=\${line#:} ;;
      *) shown+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}") ;;
    esac
  done < <("\${words[1]}" __complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)
  (( \${#shown} )) && _describe -t values cellar shown
  case $kind in
    file) _files ;;
    folder) _files -/ ;;
  esac
}
if [[ \${funcstack[1]} == _cellar ]]; then _cellar "$@"; else compdef _cellar cellar; fi
`

const FISH = `# fish completion of cellar: cellar completion fish
function __cellar_complete
  set -l words (commandline -opc)
  set -l typed (commandline -ct)
  set -l kind none
  for line in ($words[1] __complete -- $words[2..-1] "$typed" 2>/dev/null)
    switch $line
      case :file :folder :none
        set kind (string sub -s 2 -- $line)
      case '*'
        echo $line
    end
  end
  switch $kind
    case file
      __fish_complete_path "$typed"
    case folder
      __fish_complete_directories "$typed"
  end
end
complete -c cellar -f -a '(__cellar_complete)'
`

const SCRIPTS: Readonly<Record<string, string>> = { bash: BASH, zsh: ZSH, fish: FISH }

/** `cellar completion bash|zsh|fish`. */
export async function completion({ words }: Call): Promise<number> {
  print(SCRIPTS[words[0]!]!)
  return 0
}
