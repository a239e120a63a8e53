package main

// All there is to try, in the order in which it is tried: what spoils the passed socket comes last.
var probes = concat(
	namespaceProbes, initProbes, kernelProbes, fileProbes, codeProbes, processProbes, privilegeProbes, terminalProbes, socketProbes,
)

func concat(groups ...[]probe) []probe {
	var all []probe
	for _, group := range groups {
		all = append(all, group...)
	}
	return all
}
