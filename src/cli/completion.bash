# Bash completion for vmferry; the words come from its own tables.
_vmferry()
{
	local cur=${COMP_WORDS[COMP_CWORD]} option='' verb='' words i
	# Not COMP_WORDS, which take ssh://b and --transport=tls apart.
	read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
	[[ ${COMP_LINE:0:COMP_POINT} == *[[:blank:]] ]] && words+=('')
	for ((i = 1; i < ${#words[@]} - 1; i++)); do
		case ${words[i]} in
		-H | --host) ((i++)) ;;
		-*) ;;
		*)
			verb=${words[i]}
			break
			;;
		esac
	done
	if [[ ${words[-1]} == --*=* ]]; then
		option=${words[-1]%%=*}
		option=${option#--}
		cur=${words[-1]#*=}
	fi
	mapfile -t COMPREPLY < <(compgen -W "$(vmferry --complete "$verb" ${option:+"$option"} 2>/dev/null)" -- "$cur")
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
		compopt -o nospace
	fi
}
complete -o default -F _vmferry vmferry
