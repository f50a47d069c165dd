package oci

import "strings"

// variables keep their first order; a later value replaces an earlier one.
type variables struct {
	list  []string
	place map[string]int
}

func (v *variables) set(entry string) {
	name, _, _ := strings.Cut(entry, "=")
	if v.place == nil {
		v.place = map[string]int{}
	}
	if at, there := v.place[name]; there {
		v.list[at] = entry
		return
	}
	v.place[name] = len(v.list)
	v.list = append(v.list, entry)
}
