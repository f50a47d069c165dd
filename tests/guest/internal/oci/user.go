package oci

import (
	"fmt"
	"strconv"
	"strings"
)

// User is who a container runs as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
}

// FindUser reads `user`, `uid`, `user:group` or `uid:gid` by the image's own tables,
// which may be empty. Without a name it is root.
func FindUser(spec, passwd, group string) (User, error) {
	name, groupName, grouped := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	user := User{Home: "/"}
	row, listed := lookup(passwd, name, 7)
	switch uid, err := strconv.ParseUint(name, 10, 32); {
	case listed:
		ids, err := numbers(row[2], row[3])
		if err != nil {
			return user, fmt.Errorf("user %q of the image has no numbers", name)
		}
		name = row[0]
		user.UID, user.GID, user.Home = ids[0], ids[1], row[5]
	case err == nil:
		user.UID = uint32(uid)
	default:
		return user, fmt.Errorf("the image has no user %q", name)
	}
	if !grouped {
		user.Groups = memberships(group, name)
		return user, nil
	}
	if row, listed := lookup(group, groupName, 4); listed {
		groupName = row[2]
	}
	gid, err := strconv.ParseUint(groupName, 10, 32)
	if err != nil {
		return user, fmt.Errorf("the image has no group %q", groupName)
	}
	user.GID = uint32(gid)
	return user, nil
}

// lookup finds a row by its name or its number.
func lookup(table, key string, columns int) ([]string, bool) {
	for _, line := range strings.Split(table, "\n") {
		row := strings.Split(line, ":")
		if len(row) >= columns && (row[0] == key || row[2] == key) {
			return row, true
		}
	}
	return nil, false
}

func memberships(group, name string) []uint32 {
	var out []uint32
	for _, line := range strings.Split(group, "\n") {
		row := strings.Split(line, ":")
		if len(row) < 4 {
			continue
		}
		for _, member := range strings.Split(row[3], ",") {
			if ids, err := numbers(row[2]); member == name && err == nil {
				out = append(out, ids[0])
			}
		}
	}
	return out
}

func numbers(texts ...string) ([]uint32, error) {
	out := make([]uint32, len(texts))
	for i, text := range texts {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, err
		}
		out[i] = uint32(n)
	}
	return out, nil
}
