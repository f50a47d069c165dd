// Package machine is the guest's door to the kernel: the command line, the
// devices at their contractual PCI addresses, the network card, the power
// button, and the end of the machine.
package machine

import "strings"

// CmdlineValue returns the value of the first `key=value` word of a kernel
// command line.
func CmdlineValue(cmdline, key string) (string, bool) {
	for _, word := range strings.Fields(cmdline) {
		if strings.HasPrefix(word, key+"=") {
			return word[len(key)+1:], true
		}
	}
	return "", false
}
