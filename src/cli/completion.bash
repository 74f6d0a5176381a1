# Bash completion for vmferry; the words come from its own tables.
_vmferry()
{
	local cur=${COMP_WORDS[COMP_CWORD]} verb='' i
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		-H | --host) ((i++)) ;;
		-*) ;;
		*)
			verb=${COMP_WORDS[i]}
			break
			;;
		esac
	done
	mapfile -t COMPREPLY < <(compgen -W "$(vmferry --complete $verb 2>/dev/null)" -- "$cur")
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
		compopt -o nospace
	fi
}
complete -F _vmferry vmferry
